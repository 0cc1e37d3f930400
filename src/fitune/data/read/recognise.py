"""Which form a data set has: recognised from its columns, or named in the settings.

In: column names, `data.form`, `data.columns` (the form's column → the file's) and the kind that the method reads.
Out: a `RecognisedForm`, which reads the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fitune.data.read.forms import DATA_FORMS
from fitune.data.read.forms.cells import Cells, Messages, say
from fitune.data.read.forms.data_form import DataForm
from fitune.data.rows import Example, Pair
from fitune.errors import DataError, did_you_mean

# Kind → what a method that reads it needs, for the messages.
NEEDS = {
    "rows": "rows with answers",
    "text": "plain text",
    "pairs": "pairs of a chosen and a rejected answer",
    "prompts": "prompts",
}
PREFERENCE = {"prompt, chosen, rejected": {"chosen", "rejected"}, "prompt, completion, label": {"completion", "label"}}


@dataclass(frozen=True)
class RecognisedForm:
    """A form, and the file's column for each of the form's that the file names otherwise."""

    facts: DataForm
    columns: Mapping[str, str]

    @property
    def name(self) -> str:
        """The form's name."""
        return self.facts.name

    @property
    def is_text(self) -> bool:
        """Whether a row is plain text, of which every token is trained."""
        return self.facts.text is not None

    def to_example(self, row: Mapping[str, Any], system: str | None, number: int) -> Example:
        """A row as a conversation with an answer, or as text.

        Args:
            system: system prompt for a row that brings none.
            number: where the row stands in its file.

        Raises:
            DataError: a missing or empty prompt, answer or text; a role or a message that is not one.
        """
        if self.facts.text is not None:
            return Example(None, self.facts.text(Cells(row, self.columns, number)), number)
        messages = self.to_messages(row, system, number)
        if not any(message["role"] == "assistant" for message in messages):
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"row {number} has no answer: its roles are {roles}")
        return Example(tuple(messages), None, number)

    def to_messages(self, row: Mapping[str, Any], system: str | None, number: int) -> Messages:
        """The messages of a row, a system prompt before them; a form without answers gives the prompt alone.

        Raises:
            DataError: as `to_example`, but for a missing answer.
        """
        assert self.facts.conversation is not None, f"{self.name} has no messages"
        cells = Cells(row, self.columns, number)
        return _with_system(self.facts.conversation(cells), cells.get("system") or system)

    def to_pair(self, row: Mapping[str, Any], system: str | None, number: int) -> Pair:
        """A row as a pair.

        Raises:
            DataError: a side that is missing, sides without a common prompt, or a prompt that is not the one they begin
                with.
        """
        assert self.facts.pair is not None, f"{self.name} has no pairs"
        cells = Cells(row, self.columns, number)
        pair = self.facts.pair(cells)
        prompt = _with_system(list(pair.prompt), cells.get("system") or system)
        return Pair(tuple(prompt), pair.chosen, pair.rejected, number)


def forms_of(kind: str) -> list[DataForm]:
    """The forms that hold what a method reads (a kind of `DataForm`), in the order in which they are tried."""
    found = [form for form in DATA_FORMS.values() if kind in form.kinds]
    return sorted(found, key=lambda form: kind not in form.first_for)


def holds(kind: str, columns: Iterable[str]) -> bool:
    """Whether the columns are those of some form of this kind."""
    present = set(columns)
    return any(set(form.needs) <= present for form in forms_of(kind))


def recognise(
    columns: Sequence[str], form: str = "auto", mapping: Mapping[str, str] | None = None, kind: str = "rows"
) -> RecognisedForm:
    """The form that fits the columns.

    Args:
        form: a key of DATA_FORMS, or auto.
        mapping: the form's column → the file's.
        kind: what the method reads, a kind of `DataForm`.

    Raises:
        DataError: none fits, or a preference form, or a mapping to columns that are not there.
    """
    mapping = dict(mapping or {})
    _refuse_mapping(mapping, columns)
    present = (set(columns) - set(mapping.values())) | set(mapping)
    if kind == "rows" and form == "auto":
        _refuse_preferences(present)
    readable = {one.name: one for one in forms_of(kind)}
    if form == "auto":
        chosen = next((one for one in readable.values() if set(one.needs) <= present), None)
    elif form in readable:
        chosen = readable[form] if set(readable[form].needs) <= present else None
    else:
        raise DataError(f"data.form is {form}, and the method needs {NEEDS[kind]}: use {', '.join(readable)}, or auto")
    if chosen is None:
        wanted = "; ".join(f"{one.name}: {', '.join(one.needs)}" for one in readable.values())
        asked = f"data.form is {form}, and" if form != "auto" else "no form is recognised:"
        if kind != "rows":
            asked = f"the method needs {NEEDS[kind]}; {asked}"
        raise DataError(
            f"{asked} the data has the columns {', '.join(columns) or '(none)'}. Forms and their columns are {wanted}. "
            "Other names are mapped with data.columns, for example data.columns={prompt: question, completion: answer}"
        )
    return RecognisedForm(chosen, mapping)


def _refuse_mapping(mapping: Mapping[str, str], columns: Sequence[str]) -> None:
    """Raises DataError for a mapping to a column that is not there, or of one that no form knows."""
    known = {name for form in DATA_FORMS.values() for name in (*form.needs, *form.may_have)}
    for own, theirs in mapping.items():
        if theirs not in columns:
            raise DataError(
                f'data.columns maps {own} to "{theirs}", which the data does not have{did_you_mean(theirs, columns)}; '
                f"its columns are: {', '.join(columns)}"
            )
        if own not in known:
            raise DataError(f'data.columns has "{own}", which no form uses{did_you_mean(own, known)}')


def _refuse_preferences(present: set[str]) -> None:
    """Raises DataError for the columns of preference data, which are not what rows are."""
    for layout, needed in PREFERENCE.items():
        if needed <= present:
            raise DataError(
                f"the columns are those of preference data ({layout}), which sft and lm do not train on; "
                "use method reward or dpo, or for plain fine-tuning map the chosen answer: data.columns={completion: chosen}"
                if "chosen" in needed
                else f"the columns are those of preference data ({layout}); drop the label column to train on "
                "every completion"
            )


def _with_system(messages: Messages, system: Any) -> Messages:
    """The messages, a system prompt before them where there is one to add."""
    if system and messages[0]["role"] != "system":
        return [say("system", str(system)), *messages]
    return messages
