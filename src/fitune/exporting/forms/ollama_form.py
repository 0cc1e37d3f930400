"""ollama: a GGUF file, and the Modelfile that `ollama create` reads."""

from __future__ import annotations

from pathlib import Path

from fitune.exporting.forms import gguf_form
from fitune.exporting.forms.export_form import ExportForm, ExportJob


def _write(job: ExportJob) -> Path:
    from fitune.console import log
    from fitune.exporting.modelfile import modelfile, trained_context

    path = gguf_form.write(job)
    context = trained_context(job.adapter, job.target.model.config)
    if context:
        log(f"Modelfile: num_ctx {context}, the longest row of training; lower it there if memory is short")
    (job.folder / "Modelfile").write_text(modelfile(path.name, job.target.renderer, context), encoding="utf-8")
    return path


OLLAMA = ExportForm(
    name="ollama",
    words="that and a Modelfile",
    contents="that, and a `Modelfile`",
    takes_gguf_type=True,
    refuse=gguf_form.refuse,
    write=_write,
    reopen=gguf_form.reopen,
)
