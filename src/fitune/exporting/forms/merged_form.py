"""merged: a whole model in 16 bits, which transformers, vLLM and others open."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from fitune.exporting.forms.export_form import ExportForm, ExportJob

if TYPE_CHECKING:
    from torch import nn
    from transformers import GenerationConfig

SHARD = "4GB"


def _write(job: ExportJob) -> Path:
    from fitune.console import log
    from fitune.exporting.merge_weights import sixteen_bit
    from fitune.exporting.new_folder import require_space
    from fitune.models.towers import copy_processor

    model, tokenizer = job.target.plain_model, job.target.renderer.tokenizer
    dtype = sixteen_bit(job.target.source)
    require_space(job.folder, 2 * model.num_parameters())
    log(f"writing {str(dtype).removeprefix('torch.')} safetensors")
    cast("nn.Module", model).to(dtype)
    habits = cast("GenerationConfig | None", model.generation_config)
    if habits is not None and not habits.do_sample:
        # transformers refuses to save sampling values beside greedy decoding, which some models publish.
        habits.temperature = habits.top_p = habits.top_k = None
    model.save_pretrained(str(job.folder), max_shard_size=SHARD)
    tokenizer.chat_template = job.target.renderer.template_text
    tokenizer.save_pretrained(job.folder)
    job.target.renderer.asking.write(job.folder)
    copy_processor(job.target.source, job.folder)
    return job.folder


MERGED = ExportForm(
    name="merged",
    words="16-bit safetensors",
    contents="sharded safetensors (4 GB a shard), config, generation settings, tokenizer, template",
    write=_write,
)
