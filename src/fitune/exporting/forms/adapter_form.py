"""adapter: the adapter's folder as it is."""

from __future__ import annotations

from pathlib import Path

from fitune.exporting.forms.export_form import ExportForm, ExportJob


def _write(job: ExportJob) -> Path:
    import shutil

    from fitune.exporting.new_folder import require_space
    from fitune.runs.disk_space import folder_bytes

    assert job.adapter is not None  # refused before
    require_space(job.folder, folder_bytes(job.adapter))
    shutil.copytree(job.adapter, job.folder, dirs_exist_ok=True)
    return job.folder


ADAPTER = ExportForm(
    name="adapter",
    words="a plain PEFT folder",
    contents="PEFT's two files, tokenizer, template, `fitune.json`",
    merges=False,
    loss="same",
    write=_write,
)
