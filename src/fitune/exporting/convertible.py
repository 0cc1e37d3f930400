"""Whether a model can be exported in a form, known from its config and tokenizer: before training, not after."""

from __future__ import annotations

from collections.abc import Iterable

from fitune.errors import ModelError
from fitune.exporting.forms import EXPORT_FORMS
from fitune.exporting.forms.export_form import Exportable, ExportForm
from fitune.exporting.gguf.gguf_types import GGUF_TYPES


def find_form(name: str, gguf_type: str) -> ExportForm:
    """The form of this name.

    Raises:
        ModelError: there is none, or it is to be stored as a type that there is not.
    """
    form = EXPORT_FORMS.get(name)
    if form is None:
        raise ModelError(f'there is no form "{name}"; use one of {", ".join(EXPORT_FORMS)}')
    if form.takes_gguf_type and gguf_type not in GGUF_TYPES:
        raise ModelError(f'there is no GGUF type "{gguf_type}"; use one of {", ".join(GGUF_TYPES)}')
    return form


def refuse_unconvertible(forms: Iterable[str], model: Exportable) -> None:
    """Everything that can be known to fail before a weight is loaded.

    Args:
        forms: keys of EXPORT_FORMS.

    Raises:
        ModelError: nothing to export in one of the forms, weights that nothing can be merged into, or a model, a
            tokenizer or a template that the form cannot hold.
    """
    wanted = [EXPORT_FORMS[name] for name in forms]
    for form in wanted:
        if not form.merges and not model.has_adapter:
            raise ModelError(f"{model.name} has no adapter: it is a whole model. `--to merged` writes that")
        if form.merges and model.has_adapter:
            _refuse_merge(model)
    for form in wanted:
        form.refuse(model)


def _refuse_merge(model: Exportable) -> None:
    """Raises ModelError when the adapter cannot be merged into its base."""
    if model.init == "loftq":
        raise ModelError(
            "a LoftQ adapter compensates the error of its quantized base and fits no other weights; "
            "export it with --to adapter"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise ModelError(
            f"the adapter's base {model.base_name} is stored quantized, and a merge needs its 16-bit weights; "
            "name the unquantized model it was made from (`fitune export --base`), or export the adapter alone"
        )
