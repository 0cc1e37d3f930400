"""What was read of a source, and what was not: counted while rows are turned, shown by `data check`.

`Tally` counts; `ReadFacts` is what came of it, with what the file itself said.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from fitune.data.read.files import Rows
from fitune.data.reports.counting import named
from fitune.errors import DataError

REASONS_SHOWN = 10


class RowLeftOut(DataError):
    """A row that teaches nothing; the message is the reason, in words that fit several rows."""


@dataclass
class Tally:
    """Counts over the rows of one source.

    Attributes:
        columns: columns that some row was read from.
        roles: messages by role.
        notes: what was read otherwise than as it stands → in how many rows, and the first of them.
        empty_answers: rows with an answer that is empty and not trained.
        left_out: reason → rows.
    """

    columns: set[str] = field(default_factory=set)
    roles: Counter[str] = field(default_factory=Counter)
    notes: dict[str, tuple[int, int]] = field(default_factory=dict)
    empty_answers: list[int] = field(default_factory=list)
    left_out: dict[str, list[int]] = field(default_factory=dict)

    def note(self, what: str, number: int) -> None:
        """One more row of which something is to be said."""
        count, first = self.notes.get(what, (0, number))
        self.notes[what] = count + 1, first

    def note_if(self, what: str | None, number: int) -> None:
        """One more row of which something is to be said, where it is."""
        if what:
            self.note(what, number)

    def drop(self, fault: object, number: int) -> None:
        """One more row that cannot be used and is dropped, by the error that it gave."""
        reason = re.sub(rf"^row {number}:? ", "", str(fault))
        self.leave_out(f"{reason} (data.bad_rows: drop)", number)

    def leave_out(self, reason: str, number: int) -> None:
        """One more row that is not trained."""
        self.left_out.setdefault(reason, []).append(number)


@dataclass(frozen=True, kw_only=True)
class ReadFacts:
    """What was read of one source.

    Attributes:
        form: the form's name.
        rows: rows that the source holds.
        encoding: of its text, as Python names it.
        columns_used: columns that rows were read from.
        columns_unused: the others; rewards may ask for them.
        roles: messages by role, in order of appearance.
        empty_answers: rows with an answer that is empty and not trained.
        left_out: reason → rows that are not trained.
        notes: what was read otherwise than as it stands, a sentence each.
    """

    form: str
    rows: int
    encoding: str
    columns_used: tuple[str, ...]
    columns_unused: tuple[str, ...]
    roles: Mapping[str, int]
    empty_answers: tuple[int, ...]
    left_out: Mapping[str, tuple[int, ...]]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for `--json` and the manifest."""
        return {**asdict(self), "left_out": {reason: list(rows) for reason, rows in self.left_out.items()}}

    def lines(self) -> list[str]:
        """The facts in words, a fact a line; what is as usual is not said."""
        roles = ", ".join(f"{count:,} {role}" for role, count in self.roles.items())
        said = {
            "encoding": "" if self.encoding == "utf-8" else self.encoding,
            "columns read": ", ".join(self.columns_used),
            "columns not read": ", ".join(self.columns_unused),
            "messages": roles,
            "empty answers": named(self.empty_answers) if self.empty_answers else "",
        }
        left = [f"{'left out':<22}{rows}: {reason}" for rows, reason in self._said_of_left_out()]
        notes = [f"{'read as meant':<22}{note}" for note in self.notes]
        return [f"{name:<22}{words}" for name, words in said.items() if words] + left + notes

    @classmethod
    def of(cls, rows: Rows, form_name: str, tally: Tally) -> ReadFacts:
        """What was read of rows, after they were turned."""
        columns = rows.columns
        counted = [
            f"{what}, in {count:,} {'row' if count == 1 else 'rows'} (first in row {first})"
            for what, (count, first) in tally.notes.items()
        ]
        return cls(
            form=form_name,
            rows=len(rows.rows),
            encoding=rows.encoding,
            columns_used=tuple(column for column in columns if column in tally.columns),
            columns_unused=tuple(column for column in columns if column not in tally.columns),
            roles=dict(tally.roles),
            empty_answers=tuple(tally.empty_answers),
            left_out={reason: tuple(numbers) for reason, numbers in tally.left_out.items()},
            notes=(*rows.notes, *counted),
        )

    @property
    def left_out_in_words(self) -> tuple[str, ...]:
        """Rows that are not trained, a sentence a reason."""
        return tuple(f"{rows} left out: {reason}" for rows, reason in self._said_of_left_out())

    def _said_of_left_out(self) -> list[tuple[str, str]]:
        """Rows that are left out, and the reason; the commonest first, and many reasons counted together."""
        reasons = sorted(self.left_out.items(), key=lambda one: -len(one[1]))
        rest = [number for _, rows in reasons[REASONS_SHOWN:] for number in rows]
        said = [(named(rows), reason) for reason, rows in reasons[:REASONS_SHOWN]]
        return [*said, (named(sorted(rest)), f"{len(reasons) - REASONS_SHOWN:,} other reasons")] if rest else said

    @property
    def warnings(self) -> tuple[str, ...]:
        """What should be seen before a run: rows left out, empty answers, and what was read otherwise than it stands."""
        empty = (
            [f"{named(self.empty_answers)} with an empty answer, which is not trained"] if self.empty_answers else []
        )
        return (*self.left_out_in_words, *empty, *self.notes)
