"""What the check of every kind of data counts and words alike: lengths, rows that stand twice, rows that are named.

Used by report.py (rows), pair_report.py (pairs), judged_report.py (judged answers) and prompts.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fitune.errors import DataError

if TYPE_CHECKING:
    from fitune.data.render.renderer import Renderer
    from fitune.data.rows import TokenRow

SHOWN = 5  # row numbers named in a message; the rest is counted
# Shares beyond which data is hardly meant so: of rows; of trained and of unknown tokens among all.
ODD_SHARE = 0.1
LEAST_TRAINED = 0.005
MOST_UNKNOWN = 0.01


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
    def of(cls, lengths: Sequence[int]) -> Lengths:
        """Of one number a row."""
        if not lengths:
            return cls(0, 0, 0, 0)
        return cls(sum(lengths), min(lengths), int(median(lengths)), max(lengths))


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


def odd_tokens(rows: Sequence[TokenRow], renderer: Renderer, duplicates: int) -> list[str]:
    """Warnings for tokens that cannot be what anybody meant: text that the tokenizer deletes or does not know.

    Args:
        duplicates: rows whose text is another's; more rows than these with another's tokens have lost their text.
    """
    if not rows:
        return []
    tokenizer, found = renderer.tokenizer, []
    marks = sorted({*tokenizer.all_special_ids, *renderer.stop_ids})
    taught = [(row, row.arrays[0][row.arrays[1]]) for row in rows]
    tokens, trained = sum(row.num_tokens for row in rows), sum(len(ids) for _, ids in taught)
    if 0 < trained < LEAST_TRAINED * tokens:
        found.append(f"only {trained:,} of {tokens:,} tokens ({trained / tokens:.2%}) are trained")
    marks_alone = [row.row_number for row, ids in taught if len(ids) and np.isin(ids, marks).all()]
    if len(marks_alone) >= ODD_SHARE * len(rows):
        found.append(
            f"{named(marks_alone)} whose trained tokens are end tokens alone: the answer's text gives no token; look at "
            "a row with `fitune data show`, and at the tokenizer's normalizer"
        )
    equal = num_duplicates(row.arrays[0].tobytes() for row in rows) - duplicates
    if equal >= max(ODD_SHARE * len(rows), 2):
        found.append(f"{equal:,} rows have the tokens of another row, although their text differs")
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (*renderer.stop_ids, tokenizer.bos_token_id, tokenizer.pad_token_id):
        held = [(row.row_number, int((row.arrays[0] == unknown).sum())) for row in rows]
        share = sum(count for _, count in held) / tokens
        if share >= MOST_UNKNOWN:
            first = [number for number, count in held if count]
            found.append(
                f"{share:.1%} of the tokens are unknown to the tokenizer ({tokenizer.unk_token}), in {named(first)}: "
                "the model cannot tell what stood there"
            )
    return found


def refuse(name: str, errors: Sequence[str]) -> None:
    """Raises DataError with all of them, when there are any."""
    if errors:
        raise DataError("\n".join([f"{name} cannot be trained on:", *(f"  {error}" for error in errors)]))
