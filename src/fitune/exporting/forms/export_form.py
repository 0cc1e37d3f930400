"""What an export form is: its facts, what it refuses, how it is written and how it is opened again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.exporting.gguf.gguf_types import GGUF_TYPES

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from fitune.evaluation.generation import LanguageModel
    from fitune.evaluation.inference_model import Target
    from fitune.exporting.fidelity import Asked, Probe
    from fitune.models.template import Template


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """What is known of a model before a weight is loaded.

    Attributes:
        name: as the user names it. base_name: the (base) model.
        config: of transformers. tokenizer: with the template's new tokens added.
        has_adapter: something is merged into the model's weights, or exported alone.
        init: how the adapter's weights began, as in `lora.init`.
        gguf_type: a key of GGUF_TYPES, for the forms that take one. importance: it is quantized by an importance matrix.
    """

    name: str
    base_name: str
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    template: Template
    has_adapter: bool
    init: str = "default"
    gguf_type: str = "f16"
    importance: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """What a form writes: `target` (merged, where the form merges) into `folder`.

    Attributes:
        title: what the model is called in file names.
        gguf_type: a key of GGUF_TYPES.
        adapter: the adapter's own folder, or None for a whole model.
        importance: text on which an importance matrix is measured, or None.
    """

    target: Target
    folder: Path
    title: str
    gguf_type: str
    adapter: Path | None
    importance: str | None = None


@dataclass(frozen=True)
class Reopened:
    """A copy as its users open it: as a model of transformers, or as something that is asked.

    Attributes:
        model: None where nothing that is installed opens the copy; the notes say so.
        tokenizer: without one token ids are not compared; the notes say why.
        ask: the copy's own answers to a probe, in place of both.
    """

    model: LanguageModel | None
    tokenizer: PreTrainedTokenizerBase | None
    notes: tuple[str, ...] = ()
    ask: Callable[[Probe], Asked] | None = None


def refuse_nothing(_: Exportable) -> None:
    """For forms that hold every model."""


def reopen_by_name(_: ExportJob, main: Path, precision: str, device: str) -> Reopened:
    """As `fitune chat` or any user of the copy would: by its path."""
    from fitune.evaluation.inference_model import open_target

    copy = open_target(str(main), device=device, precision=precision)
    return Reopened(copy.model, copy.renderer.tokenizer)


@dataclass(frozen=True, kw_only=True)
class ExportForm:
    """One form. Modules that need torch are imported inside its functions: settings and help read the rest.

    Attributes:
        name: as in `--to` and `export.to`.
        words: what it is, for the help.
        contents: what is in the folder, for the documents.
        merges: the adapter is merged into its 16-bit base first. Otherwise the adapter alone is exported, and there must
            be one.
        takes_gguf_type: it is stored as one of GGUF_TYPES.
        loss: what it does to the weights, a key of `fidelity.THRESHOLDS`; a GGUF type says so itself.
        refuse: raises ModelError for a model that the form cannot hold.
        write: writes the folder; returns what is handed on, a file or the folder. Raises RunError without room on the
            disk, ModelError for what cannot be converted.
        reopen: (job, what `write` returned, precision, device) → the copy. It may overwrite the target's weights.
    """

    name: str
    words: str
    contents: str
    merges: bool = True
    takes_gguf_type: bool = False
    loss: str = "16-bit"
    refuse: Callable[[Exportable], None] = refuse_nothing
    write: Callable[[ExportJob], Path]
    reopen: Callable[[ExportJob, Path, str, str], Reopened] = reopen_by_name

    def variant(self, gguf_type: str) -> str:
        """Name of the copy's folder: the form, and its type where it takes one."""
        return f"{self.name}-{gguf_type}" if self.takes_gguf_type else self.name

    def loss_of(self, gguf_type: str) -> str:
        """What the copy's weights have lost, a key of `fidelity.THRESHOLDS`."""
        return GGUF_TYPES[gguf_type].loss if self.takes_gguf_type else self.loss
