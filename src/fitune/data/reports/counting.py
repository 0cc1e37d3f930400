"""What the check of every kind of data counts and words alike: lengths, rows that stand twice, rows that are named.

Used by report.py (rows), pair_report.py (pairs), judged_report.py (judged answers) and prompts.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypedDict

from fitune.errors import DataError

if TYPE_CHECKING:
    import numpy as np

SHOWN = 5  # row numbers named in a message; the rest is counted


class DataReport(Protocol):
    """What every report offers, whatever else it counts. Lengths are in tokens."""

    @property
    def name(self) -> str: ...
    @property
    def form(self) -> str: ...
    @property
    def rows(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def shortest(self) -> int: ...
    @property
    def median(self) -> int: ...
    @property
    def longest(self) -> int: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def warnings(self) -> tuple[str, ...]: ...

    def to_dict(self) -> dict[str, object]:
        """Plain values for `--json` and the manifest."""
        ...

    def lines(self) -> list[str]:
        """The report in words, a fact a line."""
        ...


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens, summed up; all 0 where there are none."""

    total: int
    shortest: int
    median: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int] | np.ndarray) -> Lengths:
        """Of one number a row."""
        if not len(lengths):
            return cls(0, 0, 0, 0)
        import numpy as np  # not before there are rows: settings load this module

        found = np.asarray(lengths)
        return cls(int(found.sum()), int(found.min()), int(np.median(found)), int(found.max()))


class Histogram(TypedDict):
    """Rows by length: rows[i] have edges[i] tokens or more and fewer than edges[i + 1]."""

    edges: list[int]
    rows: list[int]


def histogram(lengths: Sequence[int], bars: int = 24) -> Histogram:
    """Lengths in bars of equal width, a round number of tokens."""
    if not lengths:
        return {"edges": [], "rows": []}
    low, high = min(lengths), max(lengths)
    width = max(1, -(-(high + 1 - low) // bars))
    counts = [0] * ((high - low) // width + 1)
    for length in lengths:
        counts[(length - low) // width] += 1
    return {"edges": [low + width * place for place in range(len(counts) + 1)], "rows": counts}


def span(report: DataReport) -> str:
    """`3 to 9, median 5, limit 12`."""
    limit = f", limit {report.max_length:,}" if report.max_length else ""
    return f"{report.shortest:,} to {report.longest:,}, median {report.median:,}{limit}"


def num_duplicates(keys: Iterable[Hashable]) -> int:
    """How many items are there a second time or more often."""
    listed = list(keys)
    return len(listed) - len(set(listed))


def named(numbers: Sequence[int], what: str = "row", where: str = "") -> str:
    """`3 rows (2, 5, 9)`, or with `where` `3 pairs (rows 2, 5, 9)`; at most SHOWN numbers."""
    plural = "" if len(numbers) == 1 else "s"
    shown = ", ".join(str(number) for number in numbers[:SHOWN]) + (", …" if len(numbers) > SHOWN else "")
    return f"{len(numbers):,} {what}{plural} ({f'{where}{plural} ' if where else ''}{shown})"


def refuse(name: str, errors: Sequence[str]) -> None:
    """Raises DataError with all of them, when there are any."""
    if errors:
        raise DataError("\n".join([f"{name} cannot be trained on:", *(f"  {error}" for error in errors)]))
