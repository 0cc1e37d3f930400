"""A form at work: it reads the rows of one source, checks each conversation, and counts what it read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from fitune.data.examples import Example, Judged, Message, Pair
from fitune.data.read.cell_types import is_empty
from fitune.data.read.files import Rows
from fitune.data.read.forms.cells import Cells, Messages, say
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.messages.conversation import check_order, taken
from fitune.data.read.messages.message import unfolded
from fitune.data.read.read_facts import RowLeftOut, Tally
from fitune.errors import DataError

NOT_TRAINED = frozenset({"image", "images", "audio", "audios", "video", "videos"})  # columns of what is not text


@dataclass(frozen=True)
class RecognisedForm:
    """A form, and the file's column for each of the form's that the file names otherwise.

    `tally` counts over the rows that were read.
    """

    facts: DataForm
    columns: Mapping[str, str]
    tally: Tally = field(default_factory=Tally, compare=False, repr=False)

    @property
    def name(self) -> str:
        """The form's name."""
        return self.facts.name

    @property
    def is_text(self) -> bool:
        """Whether a row is plain text, of which every token is trained."""
        return self.facts.text is not None

    def to_example(self, row: Mapping[str, object], system: str | None, number: int) -> Example:
        """A row as a conversation with an answer, or as text.

        Args:
            system: system prompt for a row that brings none.
            number: where the row stands in its file.

        Raises:
            DataError: a missing or empty prompt, answer or text; a role or a message that is not one.
            RowLeftOut: every answer is empty.
        """
        if self.facts.text is not None:
            return Example(messages=None, text=self.facts.text(self._cells(row, number)), row_number=number)
        example = self.to_conversation(row, system, number)
        messages = example.messages or ()
        answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
        if not answers:
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"row {number} has no answer: its roles are {roles}")
        empty = {place for place in answers if _is_empty(messages[place])}
        if len(empty) == len(answers):
            raise RowLeftOut("every answer is empty")
        if empty:
            self.tally.empty_answers.append(number)
            return replace(example, untrained=example.untrained | empty)
        return example

    def to_conversation(self, row: Mapping[str, object], system: str | None, number: int) -> Example:
        """A row's messages and tools, whether or not there is an answer; a form without answers gives the prompt alone.

        Raises:
            DataError: as `to_example`, but for a missing or an empty answer.
        """
        assert self.facts.conversation is not None, f"{self.name} has no messages"
        cells = self._cells(row, number)
        read = _with_system(self.facts.conversation(cells), cells.maybe("system"), system, cells.where)
        tools = cells.tools()
        messages, marks = taken(_unfolded(read, bool(tools), cells.where))
        check_order(messages, cells.where)
        self._count(messages)
        return Example(
            messages=tuple(messages),
            text=None,
            row_number=number,
            tools=tools,
            untrained=marks.untrained,
            completion_from=marks.completion,
            begun=marks.begun,
        )

    def to_messages(self, row: Mapping[str, object], system: str | None, number: int) -> Messages:
        """The messages of a row, a system prompt before them.

        Raises:
            DataError: as `to_conversation`.
        """
        return list(self.to_conversation(row, system, number).messages or ())

    def to_pair(self, row: Mapping[str, object], system: str | None, number: int) -> Pair:
        """A row as a pair.

        Raises:
            DataError: a side that is missing, sides without a common prompt, or a prompt that is not the one they begin
                with.
        """
        assert self.facts.pair is not None, f"{self.name} has no pairs"
        cells = self._cells(row, number)
        pair, tools = self.facts.pair(cells), cells.tools()
        prompt = _with_system(list(pair.prompt), cells.maybe("system"), system, cells.where)
        prompt, _ = taken(_unfolded(prompt, bool(tools), cells.where))
        chosen, rejected = (_of_side(list(said), bool(tools), cells.where) for said in (pair.chosen, pair.rejected))
        for side in (chosen, rejected):
            check_order([*prompt, *side], cells.where)
        self._count([*prompt, *chosen, *rejected])
        return Pair(
            prompt=tuple(prompt), chosen=tuple(chosen), rejected=tuple(rejected), row_number=number, tools=tools
        )

    def to_judged(self, row: Mapping[str, object], system: str | None, number: int) -> Judged:
        """A row as an answer with its judgement.

        Raises:
            DataError: a missing or empty prompt or completion, or a label that is neither true nor false.
        """
        assert self.facts.judged is not None, f"{self.name} has no judgements"
        cells = self._cells(row, number)
        judged, tools = self.facts.judged(cells), cells.tools()
        asked = _with_system(list(judged.prompt), cells.maybe("system"), system, cells.where)
        prompt, _ = taken(_unfolded(asked, bool(tools), cells.where))
        completion = _of_side(list(judged.completion), bool(tools), cells.where)
        check_order([*prompt, *completion], cells.where)
        self._count([*prompt, *completion])
        return replace(judged, prompt=tuple(prompt), completion=tuple(completion), tools=tools)

    def spread(self, rows: Rows) -> Rows:
        """The rows, each as often as it holds something to be trained: one for every two answers of a ranked list."""
        if self.facts.spread is None:
            return rows
        made = [
            ({**one, **{theirs: one[own] for own, theirs in self.columns.items()}}, number)
            for row, number in zip(rows.rows, rows.numbers, strict=True)
            for one in self.facts.spread({**row, **{own: row.get(theirs) for own, theirs in self.columns.items()}})
        ]
        return replace(rows, rows=tuple(row for row, _ in made), numbers=tuple(number for _, number in made))

    def _cells(self, row: Mapping[str, object], number: int) -> Cells:
        if not NOT_TRAINED.isdisjoint(row):
            _refuse_pictures(row, number)
        cells = Cells(row, self.columns, number, self.tally)
        return Cells(self.facts.unpack(cells), {}, number) if self.facts.unpack else cells

    def _count(self, messages: Messages) -> None:
        self.tally.roles.update(message["role"] for message in messages)


def _unfolded(messages: Messages, has_tools: bool, where: str) -> Messages:
    """The messages, what stands in their texts at its own place; results in Hermes' marks too."""
    return [part for message in messages for part in unfolded(message, has_tools, where)]


def _of_side(messages: Messages, has_tools: bool, where: str) -> Messages:
    """The messages of an answer that is judged, without marks.

    Raises:
        DataError: an answer that is marked as not to be trained, of which a pair can take no notice.
    """
    bare, marks = taken(_unfolded(messages, has_tools, where))
    if any(place in marks.untrained and bare[place]["role"] == "assistant" for place in range(len(bare))):
        raise DataError(f"{where}: a pair's answers are compared whole; take weight and train out of its messages")
    return bare


def _refuse_pictures(row: Mapping[str, object], number: int) -> None:
    """Raises DataError for a row that brings pictures, sound or the like in a column."""
    held = {name: row[name] for name in NOT_TRAINED & row.keys()}
    empty = {
        name for name, value in held.items() if is_empty(value) or (isinstance(value, str | list | dict) and not value)
    }
    if column := next((name for name in held if name not in empty), None):
        raise DataError(
            f"row {number} has something in the column {column}; pictures, sound and films are not trained: leave such rows "
            "out, or rename the column if it is something else"
        )


def _is_empty(answer: Message) -> bool:
    return not answer["content"].strip() and not answer.get("tool_calls")


def _with_system(messages: Messages, own: str, system: str | None, where: str) -> Messages:
    """The messages, a system prompt before them where there is one to add.

    Args:
        own: the row's own, of its system column.
        system: that of the settings, for rows that bring none.

    Raises:
        DataError: the row brings two that differ.
    """
    if messages[0]["role"] in ("system", "developer"):
        if own.strip() and own.strip() != messages[0]["content"].strip():
            raise DataError(
                f"{where} has two system prompts: the column says {own[:40]!r}, the first message "
                f"{messages[0]['content'][:40]!r}; keep one"
            )
        return messages
    chosen = own if own.strip() else system
    return [say("system", chosen), *messages] if chosen else messages
