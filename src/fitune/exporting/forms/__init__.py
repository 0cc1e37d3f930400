"""The forms of an export, one file each: the registry that `fitune export`, the settings and the documents share.

In: a model, merged where the form merges. Out: a folder, and the copy opened again. Importing this imports no torch.
A new form is an `ExportForm` in a file of its own and a line here (docs/extending.md).
"""

from __future__ import annotations

from fitune.exporting.forms.adapter_form import ADAPTER
from fitune.exporting.forms.export_form import ExportForm
from fitune.exporting.forms.gguf_form import GGUF
from fitune.exporting.forms.merged_form import MERGED
from fitune.exporting.forms.ollama_form import OLLAMA

EXPORT_FORMS: dict[str, ExportForm] = {form.name: form for form in (ADAPTER, MERGED, GGUF, OLLAMA)}


def gguf_forms() -> str:
    """The forms that take a GGUF type, in words: `gguf and ollama`."""
    return " and ".join(form.name for form in EXPORT_FORMS.values() if form.takes_gguf_type)
