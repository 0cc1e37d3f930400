"""Conversations and texts of a source → tokens, in one pass over its rows: read, turned, rendered, tokenized.

In: the rows of a source and how they are read. Out: a `RowSet`: tokens and counts as arrays; a row itself is read again when
it is asked for. Neither the rows nor their texts are ever all in memory.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import numpy as np

from fitune.data.examples import Example
from fitune.data.read.files import Rows
from fitune.data.read.read_facts import RowLeftOut
from fitune.data.read.recognised_form import RecognisedForm
from fitune.data.read.sources import DataOptions, example_key, refuse_rows, without_collection
from fitune.data.read.stored_rows import Lazy
from fitune.data.render.renderer import Renderer
from fitune.data.render.time_limit import TemplateTooSlow
from fitune.data.render.token_cache import FEWEST_ROWS, StoredPiece, TokenStore
from fitune.data.reports.token_facts import TokenFacts, measure_with
from fitune.data.token_table import TokenPiece
from fitune.errors import DataError

USUAL_ROLES = {"system", "user", "assistant", "tool"}


class Examples(Lazy[Example]):
    """The examples of a source, turned anew each time they are asked for; `places` says which of its rows they are."""

    def __init__(self, rows: Rows, form: RecognisedForm, system: str | None, places: Sequence[int]):
        self._rows, self._form, self._system, self._places = rows, form, system, places

    def __len__(self) -> int:
        return len(self._places)

    def item(self, place: int) -> Example:
        """The example."""
        at = self._places[place]
        return self._form.to_example(self._rows.rows[at], self._system, self._rows.numbers[at])

    def chosen(self, places: Sequence[int]) -> Examples:
        """Some of them."""
        return Examples(self._rows, self._form, self._system, array("q", [self._places[place] for place in places]))


@dataclass
class ExampleFacts:
    """What is counted of each example: E numbers or truth values each.

    `unusual` are roles that are not the usual ones → the examples that have them. `reasons` and `answers` say whether some
    answer has reasoning, and some none; `systems` are places in `system_texts` of the system prompts, those behind the second
    counted as one.
    """

    places: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    keys: array[int] = field(default_factory=lambda: array("q"))
    reasons: bytearray = field(default_factory=bytearray)
    answers: bytearray = field(default_factory=bytearray)
    tools: bytearray = field(default_factory=bytearray)
    blank: bytearray = field(default_factory=bytearray)
    unasked: bytearray = field(default_factory=bytearray)
    unusual: dict[str, array[int]] = field(default_factory=dict)
    systems: bytearray = field(default_factory=bytearray)
    system_texts: list[str | None] = field(default_factory=list)

    def add(self, example: Example, place: int) -> None:
        """One more, of the source's row at a place."""
        messages = example.messages or ()
        said = [message for message in messages if message["role"] == "assistant"]
        first = next((message["role"] for message in messages if message["role"] != "system"), "")
        for role in {message["role"] for message in messages} - USUAL_ROLES:
            self.unusual.setdefault(role, array("q")).append(len(self.places))
        self.places.append(place)
        self.numbers.append(example.row_number)
        self.keys.append(hash(example_key(example)))
        self.reasons.append(any(one.get("reasoning_content") for one in said))
        self.answers.append(any(not one.get("reasoning_content") for one in said))
        self.tools.append(bool(example.tools))
        self.blank.append(any(not one["content"].strip() and not one.get("tool_calls") for one in messages))
        self.unasked.append(first == "assistant")
        system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
        if system not in self.system_texts and len(self.system_texts) < 2:
            self.system_texts.append(system)
        self.systems.append(self.system_texts.index(system) if system in self.system_texts else 2)


@dataclass(frozen=True, eq=False)
class RowSet:
    """The rows of a source, or some of them. E examples, R rows of tokens.

    Attributes:
        examples: the examples of the whole source.
        facts: what was counted of each of them.
        chosen: places of those that are in this set.
        pieces: the tokens of the whole source.
        owners, numbers, texts: of all rows of tokens, the example, the row number and a hash of the text.
        measured: what was counted of each row of tokens.
    """

    examples: Examples
    facts: ExampleFacts
    chosen: np.ndarray
    pieces: Sequence[TokenPiece]
    owners: np.ndarray
    numbers: np.ndarray
    texts: np.ndarray
    measured: TokenFacts

    def some(self, places: Sequence[int]) -> RowSet:
        """Some of the examples, by their places in the source, with their rows of tokens."""
        kept = np.zeros(len(self.examples), dtype=bool)
        kept[np.asarray(places, np.int64)] = True
        return RowSet(
            examples=self.examples,
            facts=self.facts,
            chosen=np.flatnonzero(kept),
            pieces=self.pieces,
            owners=self.owners,
            numbers=self.numbers,
            texts=self.texts,
            measured=self.measured,
        )

    @property
    def places(self) -> np.ndarray:
        """Which of the source's rows of tokens are those of the chosen examples."""
        kept = np.zeros(len(self.examples), dtype=bool)
        kept[self.chosen] = True
        return np.flatnonzero(kept[self.owners])

    @property
    def thinking(self) -> bool | None:
        """Whether the answers have reasoning: all (True), none (False), or some; None too without answers."""
        found = {
            bool(value)
            for value, held in ((True, self.facts.reasons), (False, self.facts.answers))
            if self.any_of(held)
        }
        return found.pop() if len(found) == 1 else None

    @property
    def system(self) -> str | None:
        """The system prompt that all conversations begin with; None where they differ or have none."""
        found = np.unique(np.frombuffer(self.facts.systems, dtype=np.uint8)[self.chosen])
        return self.facts.system_texts[int(found[0])] if len(found) == 1 and found[0] < 2 else None

    def any_of(self, held: bytearray) -> bool:
        """Whether a truth value holds for one of the chosen examples."""
        return self.count(held) > 0

    def count(self, held: bytearray) -> int:
        """For how many of the chosen examples a truth value holds."""
        return int(np.frombuffer(held, dtype=np.uint8)[self.chosen].sum())

    def numbers_of(self, held: bytearray) -> list[int]:
        """The row numbers of the chosen examples for which it holds."""
        true = self.chosen[np.frombuffer(held, dtype=np.uint8)[self.chosen] > 0]
        return [self.facts.numbers[place] for place in true.tolist()]


def row_set(rows: Rows, form: RecognisedForm, renderer: Renderer, options: DataOptions, loss_on: str) -> RowSet:
    """Every row turned, rendered and tokenized; rows that teach nothing are left out and counted in the form's tally.

    Raises:
        DataError: rows that are not of the form, or that cannot be trained as chat would ask for them (several are listed);
            or none left.
    """
    store = TokenStore(renderer, len(rows.rows) >= FEWEST_ROWS, measure_with(renderer, options.max_length))
    work = _Pass(rows=rows, form=form, renderer=renderer, options=options, loss_on=loss_on, store=store)
    try:
        with without_collection():
            for place, row in enumerate(rows.rows):
                work.take(row, place)
        refuse_rows(f"{rows.name} ({form.name})", work.unread, len(rows.rows))
        pieces = store.finish()
    finally:
        store.close()
    refuse_rows(rows.name, work.unrendered, work.read)
    faults = [fault for one in pieces for fault in one.faults]
    if options.bad_rows != "drop":
        refuse_rows(rows.name, [why for _, _, why in faults], work.read)
    for _, number, why in faults:
        form.tally.drop(why, number)
    if len(faults) == len(work.facts.places):
        reasons = "; ".join(form.tally.left_out)
        raise DataError(f"{rows.name} ({form.name}): no row is left to train on: {reasons}")
    examples = Examples(rows, form, options.system, work.facts.places)
    return _joined(examples, work.facts, pieces, {owner for owner, _, _ in faults})


def _joined(examples: Examples, facts: ExampleFacts, stored: Sequence[StoredPiece], without: Collection[int]) -> RowSet:
    return RowSet(
        examples=examples,
        facts=facts,
        chosen=np.asarray([place for place in range(len(examples)) if place not in without], np.int64),
        pieces=[one.piece for one in stored],
        owners=np.concatenate([one.owners for one in stored]),
        numbers=np.concatenate([one.numbers for one in stored]),
        texts=np.concatenate([one.texts for one in stored]),
        measured=TokenFacts.joined([cast(TokenFacts, one.measured) for one in stored]),
    )


@dataclass
class _Pass:
    """The way of one row after the other; faults are gathered, those of reading apart from those of rendering."""

    rows: Rows
    form: RecognisedForm
    renderer: Renderer
    options: DataOptions
    loss_on: str
    store: TokenStore
    facts: ExampleFacts = field(default_factory=ExampleFacts)
    unread: list[str] = field(default_factory=list)
    unrendered: list[str] = field(default_factory=list)
    read: int = 0

    def take(self, row: Mapping[str, object], place: int) -> None:
        """One row."""
        number, tally = self.rows.numbers[place], self.form.tally
        try:
            example = self.form.to_example(row, self.options.system, number)
        except RowLeftOut as error:
            tally.leave_out(str(error), number)
            return
        except DataError as error:
            self._fault(self.unread, error, number)
            return
        self.read += 1
        try:
            rendered = self.renderer.render(example, self.loss_on, self.options.response_template)
        except TemplateTooSlow:
            raise
        except DataError as error:
            self._fault(self.unrendered, error, number)
            return
        tally.note_if(self.renderer.quoted(example), number)
        owner = len(self.facts.places)
        self.facts.add(example, place)
        if not self.unread and not self.unrendered:  # else it will be refused: look for more faults, and make no tokens
            self.store.add(rendered, owner)

    def _fault(self, faults: list[str], error: DataError, number: int) -> None:
        if self.options.bad_rows == "drop":
            self.form.tally.drop(error, number)
        else:
            faults.append(f"{error}{self.rows.place(number)}")
