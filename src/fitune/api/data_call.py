"""`fitune.check_data`: what a dataset would teach."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.api.train_call import dotted_changes
from fitune.console import be_quiet_in_a_notebook

if TYPE_CHECKING:
    from fitune.data.read.sources import PreparedData


@dataclass(frozen=True, repr=False)
class DataCheck:
    """A dataset as training would see it. `prepared` holds the token rows and the reports."""

    name: str
    prepared: PreparedData

    @property
    def warnings(self) -> tuple[str, ...]:
        """What should be looked at before training."""
        return self.prepared.warnings

    def lines(self) -> list[str]:
        """What `fitune data check` prints."""
        read = self.prepared.train_read
        return [*(read.lines() if read else ()), *self.prepared.train_report.lines()]

    def to_dict(self) -> dict[str, object]:
        """The figures as plain values."""
        return self.prepared.train_report.to_dict()

    def __repr__(self) -> str:
        said = [self.name, *(f"  {line}" for line in self.lines()), *(f"  warning: {text}" for text in self.warnings)]
        return "\n".join(said)

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>"


def check_data(
    data: str | Path | Sequence[str], *, model: str | Path | None = None, method: str | None = None, **changes: object
) -> DataCheck:
    """Check a dataset as `fitune data check` does: what would be trained on, and what is wrong with it.

        fitune.check_data("my.jsonl", model="HuggingFaceTB/SmolLM2-360M-Instruct", data={"max_length": 1024})

    Args:
        data: a file, a folder, hub:NAME, or a list of these.
        model: whose tokenizer and chat template are used; no weights are loaded.
        method: sft, dpo, kto and so on; None tells pairs and judged answers by their columns.
        changes: other settings, as in `fitune.train`.

    Raises:
        DataError: rows that cannot be trained on, each with its number.
    """
    be_quiet_in_a_notebook()
    from fitune.api.data_source import renderer_of, settings_of_data
    from fitune.training.setup import read_data

    source = str(data) if isinstance(data, str | Path) else ", ".join(data)
    settings = settings_of_data(source, dotted_changes(changes, model=model, method=method))
    renderer, config = renderer_of(settings)
    return DataCheck(source, read_data(settings, config, renderer, exclude=()))
