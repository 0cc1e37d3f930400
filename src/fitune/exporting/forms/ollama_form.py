"""ollama: a GGUF file, and the Modelfile that `ollama create` reads."""

from __future__ import annotations

from pathlib import Path

from fitune.exporting.forms import gguf_form
from fitune.exporting.forms.export_form import Exportable, ExportForm, ExportJob


def _refuse(model: Exportable) -> None:
    from fitune.data.render.renderer import Renderer
    from fitune.exporting.modelfile import modelfile

    gguf_form.refuse(model)
    modelfile("model.gguf", Renderer(tokenizer=model.tokenizer, template_text=model.template.text))


def _write(job: ExportJob) -> Path:
    from fitune.exporting.modelfile import modelfile

    path = gguf_form.write(job)
    (job.folder / "Modelfile").write_text(modelfile(path.name, job.target.renderer), encoding="utf-8")
    return path


OLLAMA = ExportForm(
    name="ollama",
    words="that and a Modelfile",
    contents="that, and a `Modelfile`",
    takes_gguf_type=True,
    refuse=_refuse,
    write=_write,
    reopen=gguf_form.reopen,
)
