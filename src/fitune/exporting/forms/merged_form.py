"""merged: a whole model in 16 bits, which transformers, vLLM and others open."""

from __future__ import annotations

from pathlib import Path

from fitune.exporting.forms.export_form import ExportForm, ExportJob


def _write(job: ExportJob) -> Path:
    from fitune.console import log
    from fitune.exporting.merge_weights import sixteen_bit
    from fitune.exporting.new_folder import require_space
    from fitune.exporting.whole_model import save_whole

    dtype = sixteen_bit(job.target.source)
    require_space(job.folder, 2 * job.target.plain_model.num_parameters())
    log(f"writing {str(dtype).removeprefix('torch.')} safetensors")
    save_whole(job.target, job.folder, dtype)
    return job.folder


MERGED = ExportForm(
    name="merged",
    words="16-bit safetensors",
    contents="sharded safetensors (4 GB a shard), config, generation settings, tokenizer, template",
    write=_write,
)
