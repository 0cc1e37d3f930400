"""A whole model saved as transformers and others open it: weights, config, generation settings, tokenizer, template."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import nn

from fitune.evaluation.inference_model import Target
from fitune.models.towers import copy_processor

if TYPE_CHECKING:
    import torch
    from transformers import GenerationConfig

SHARD = "4GB"


def save_whole(target: Target, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write a merged target into a folder.

    Args:
        dtype: that the weights are turned into, in memory too; None leaves them.
    """
    model, tokenizer = target.plain_model, target.renderer.tokenizer
    if dtype is not None:
        cast("nn.Module", model).to(dtype)
    habits = cast("GenerationConfig | None", model.generation_config)
    if habits is not None and not habits.do_sample:
        # transformers refuses to save sampling values beside greedy decoding, which some models publish.
        habits.temperature = habits.top_p = habits.top_k = None
    model.save_pretrained(str(folder), max_shard_size=SHARD)
    tokenizer.chat_template = target.renderer.template_text
    tokenizer.save_pretrained(folder)
    target.renderer.asking.write(folder)
    copy_processor(target.source, folder)
