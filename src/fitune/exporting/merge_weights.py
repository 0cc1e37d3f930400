"""An adapter added into the weights of its base, in fp32 where memory allows, and rounded once."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
from transformers import PreTrainedModel

from fitune.adapters.in_memory import tuner
from fitune.adapters.inject import undo_of
from fitune.errors import ModelError
from fitune.evaluation.inference_model import Target
from fitune.models.load_config import load_config
from fitune.models.quantization.quantize import quantized_layers
from fitune.models.source import ModelSource

SIXTEEN_BIT = (torch.bfloat16, torch.float16)


def merge(target: Target) -> Target:
    """The target without an adapter: its weights are the base's with the adapter added in.

    A layer's sum is made in the type of the adapter (fp32) and rounded to the type of the layer. Biases, norms and
    modules trained in full are taken over as they are.

    Raises:
        ModelError: the base is quantized, or the adapter is of a kind that PEFT cannot merge.
    """
    if target.adapter is None:
        return target
    model = target.peft_model
    if quantized_layers(cast(PreTrainedModel, model.get_base_model())):
        raise ModelError(
            f"{target.base_name} is stored quantized, and a merge into quantized weights rounds the adapter away; "
            "name the 16-bit model with --base"
        )
    base = cast(PreTrainedModel, model.get_base_model())
    try:
        merged = cast(PreTrainedModel, tuner(model).merge_and_unload())
    except (ValueError, NotImplementedError) as error:
        raise ModelError(f"the adapter in {target.adapter} cannot be merged: {error}") from error
    for hook in undo_of(base).hooks:  # autocast for fp32 parts among 16-bit weights: there are none any more
        hook.remove()
    del merged.fitune_undo
    return replace(target, model=merged.eval(), adapter=None)


def settle(model: PreTrainedModel) -> None:
    """The config says what is true of the weights: whether the head is still the embedding."""
    head = model.get_output_embeddings()
    model.config.tie_word_embeddings = head is not None and head.weight is model.get_input_embeddings().weight


def sixteen_bit(source: ModelSource | None) -> torch.dtype:
    """The 16-bit type to save in: that of the base as it was published, bf16 where it was fp32."""
    stored = getattr(load_config(source), "dtype", None) if source else None
    return stored if stored in SIXTEEN_BIT else torch.bfloat16
