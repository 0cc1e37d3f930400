"""Several sources as one: their rows behind each other, each source read by its own form.

In: `[a.jsonl*2, b.parquet]`, written as a list or with commas. Out: `Rows`, and a form that reads them all.
"""

from __future__ import annotations

import os
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fitune.data.examples import Example, Judged, Pair
from fitune.data.read.files import Rows
from fitune.data.read.recognised_form import RecognisedForm
from fitune.data.read.stored_rows import chosen_rows
from fitune.errors import DataError


@dataclass(frozen=True)
class WeightedSource:
    """A source and how often its rows are taken: 2 takes each twice, 0.5 takes half of them, chosen by the seed."""

    name: str
    weight: float = 1.0


def join_names(names: object) -> object:
    """A list of sources as one name, with commas; anything else as it is.

    Raises:
        ValueError: a name that has a comma itself.
    """
    if not isinstance(names, list):
        return names
    if comma := next((name for name in names if not isinstance(name, str) or "," in name), None):
        raise ValueError(f"holds {comma!r}; in a list, names of files have no commas")
    return ", ".join(names)


def sources_in(name: str) -> list[WeightedSource]:
    """The sources that a name holds; one, unless there are commas or a weight. A file of that very name goes first.

    Raises:
        DataError: a weight that is none, or an empty name.
    """
    if os.path.exists(os.path.expanduser(name)):
        return [WeightedSource(name)]
    return [_weighted(part.strip(), name) for part in name.split(",")]


def _weighted(part: str, whole: str) -> WeightedSource:
    name, star, weight = part.rpartition("*")
    if not part or (star and not name):
        raise DataError(f"data.train {whole!r} holds an empty name; write the sources with commas between them")
    if not star or os.path.exists(os.path.expanduser(part)):
        return WeightedSource(part)
    try:
        number = float(weight)
    except ValueError:
        return WeightedSource(part)  # a star that is part of the name: told when it is opened
    if not 0 < number <= 1000:
        raise DataError(f"the weight of {name} is {weight}; use a number above 0, for example 2 or 0.5")
    return WeightedSource(name.strip(), number)


def taken_by_weight(rows: Rows, weight: float, seed: int) -> Rows:
    """The rows as often as their weight says, in their order.

    Raises:
        DataError: none is left.
    """
    if weight == 1:
        return rows
    whole, rest = divmod(weight, 1)
    count = round(rest * len(rows.rows))
    if not whole and not count:
        raise DataError(f"{rows.name} has {len(rows.rows):,} rows, and of these weight {weight:g} takes none; raise it")
    some = sorted(random.Random(seed).sample(range(len(rows.rows)), count))
    places = sorted([*range(len(rows.rows))] * int(whole) + some)
    said = f"weight {weight:g}: {len(places):,} rows are taken out of {len(rows.rows):,}"
    return replace(
        rows,
        rows=chosen_rows(rows.rows, places),
        numbers=[rows.numbers[place] for place in places],
        sha256=f"{rows.sha256}*{weight:g}",
        notes=(*rows.notes, said),
    )


@dataclass(frozen=True)
class MixedForm(RecognisedForm):
    """Several forms; a row is read by that of its source. `ends` are the last row numbers of the sources."""

    forms: tuple[RecognisedForm, ...] = ()
    ends: tuple[int, ...] = ()

    @classmethod
    def of(cls, forms: Sequence[RecognisedForm], ends: Sequence[int]) -> MixedForm:
        """The mixture of the sources' forms.

        Raises:
            DataError: plain text beside conversations.
        """
        first, names = forms[0], tuple(dict.fromkeys(form.name for form in forms))
        if len({form.is_text for form in forms}) > 1:
            raise DataError(
                f"the sources have the forms {', '.join(names)}; plain text and conversations cannot be mixed"
            )
        same = len({form.facts.loss_on for form in forms}) == 1
        facts = replace(first.facts, name=" + ".join(names), loss_on=first.facts.loss_on if same else "assistant")
        parts = tuple(replace(form, tally=first.tally) for form in forms)
        return cls(facts, first.columns, first.tally, parts, tuple(ends))

    def to_example(self, row: Mapping[str, object], system: str | None, number: int) -> Example:
        """As the row's own form reads it, its earlier turns untrained where only its completion is to be trained."""
        form = self._of(number)
        example = form.to_example(row, system, number)
        if form.facts.loss_on == self.facts.loss_on or example.completion_from is None:
            return example
        return replace(example, untrained=example.untrained | frozenset(range(example.completion_from)))

    def to_conversation(self, row: Mapping[str, object], system: str | None, number: int) -> Example:
        """As the row's own form reads it."""
        return self._of(number).to_conversation(row, system, number)

    def to_pair(self, row: Mapping[str, object], system: str | None, number: int) -> Pair:
        """As the row's own form reads it."""
        return self._of(number).to_pair(row, system, number)

    def to_judged(self, row: Mapping[str, object], system: str | None, number: int) -> Judged:
        """As the row's own form reads it."""
        return self._of(number).to_judged(row, system, number)

    def _of(self, number: int) -> RecognisedForm:
        return self.forms[bisect_left(self.ends, number)]
