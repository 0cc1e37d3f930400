"""gguf: one file for llama.cpp, with tokenizer and chat template inside."""

from __future__ import annotations

from pathlib import Path

from fitune.exporting.forms.export_form import Exportable, ExportForm, ExportJob, Reopened


def refuse(model: Exportable) -> None:
    """Raises ModelError for a family, a tokenizer or a template that GGUF cannot hold."""
    from fitune.exporting.gguf.gguf_file import refuse_unwritable

    refuse_unwritable(model)


def write(job: ExportJob) -> Path:
    """Write the file; returns its path."""
    from fitune.exporting.gguf.gguf_file import write_gguf_file

    return write_gguf_file(job.target, job.folder, job.title, job.gguf_type, job.importance)


def reopen(job: ExportJob, main: Path, precision: str, device: str) -> Reopened:
    """The file asked: by llama.cpp, or read back by transformers."""
    from fitune.exporting.gguf.gguf_file import reopen_gguf_file

    return reopen_gguf_file(job.target, main, precision, device)


GGUF = ExportForm(
    name="gguf",
    words="one file for llama.cpp",
    contents="`NAME-TYPE.gguf`: weights, tokenizer, chat template",
    takes_gguf_type=True,
    refuse=refuse,
    write=write,
    reopen=reopen,
)
