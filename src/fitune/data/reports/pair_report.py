"""What pairs would teach: counts, and pairs that teach nothing (equal, empty) or only length.

In: pairs as messages and as token rows. Out: `PairReport`, and which pairs may be trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean

from fitune.data.examples import Pair
from fitune.data.render.renderer import Renderer
from fitune.data.reports.counting import Lengths, named, num_duplicates, span
from fitune.data.reports.odd_tokens import odd_tokens
from fitune.data.token_rows import PairRow

# Share of pairs from which the longer (or the shorter) answer wins so often that length alone would do.
LOPSIDED = 0.8
FEWEST_FOR_BIAS = 20


@dataclass(frozen=True, kw_only=True)
class PairReport:
    """Counts of one set of pairs, and what is wrong with it. Lengths are those of the answers, in tokens."""

    name: str
    form: str
    rows: int
    tokens: int
    trained_tokens: int
    shortest: int
    median: int
    longest: int
    max_length: int | None
    rows_over_limit: int
    equal_pairs: int
    empty_pairs: int
    pairs_that_differ_in_length_only: int
    rows_with_trained_end: int
    duplicate_rows: int
    prompts_also_in_test: int
    chosen_length: float
    rejected_length: float
    chosen_is_longer: float
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for `--json` and the manifest."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report in words, a fact a line."""
        return [
            f"pairs                 {self.rows:,} ({self.form})",
            f"tokens                {self.tokens:,} in both sides; a side has {span(self)}",
            f"answer tokens         {self.trained_tokens:,}, the only ones that are trained",
            f"end token trained     in {self.rows_with_trained_end:,} of {2 * self.rows:,} sides",
            f"over the limit        {self.rows_over_limit:,} pairs",
            f"teach nothing         {self.equal_pairs:,} pairs are equal, {self.empty_pairs:,} have an empty answer",
            f"differ in length only {self.pairs_that_differ_in_length_only:,} pairs: one answer is a prefix of the other",
            f"answer length         {self.chosen_length:.1f} tokens chosen, {self.rejected_length:.1f} rejected; the "
            f"chosen one is longer in {self.chosen_is_longer:.0%} of the pairs",
            f"duplicates            {self.duplicate_rows:,} pairs; the prompts of {self.prompts_also_in_test:,} are also "
            "in the held-out rows",
        ]


def check_pairs(
    name: str,
    form: str,
    pairs: Sequence[Pair],
    usable: Sequence[Pair],
    rows: Sequence[PairRow],
    renderer: Renderer,
    max_length: int | None,
    too_long: str,
    held_out: frozenset[str],
) -> tuple[PairReport, list[int]]:
    """Count, and say what is wrong.

    Args:
        pairs: as read; `usable` those of them without an empty answer; `rows` theirs.
        held_out: prompts of the held-out rows.

    Returns:
        The report, and the places in `rows` of the pairs that may be trained on.
    """
    errors, warnings = [], []
    empty = [pair.row_number for pair in pairs if not all(text.strip() for text in pair.texts)]
    # By place, since a ranked list gives several pairs of one row number.
    equal_at = {at for at, (pair, row) in enumerate(zip(usable, rows, strict=True)) if _equal(pair, row)}
    over_at = {at for at, row in enumerate(rows) if max_length and max(map(len, _ids(row))) > max_length}
    equal, over = ([rows[at].row_number for at in sorted(places)] for places in (equal_at, over_at))
    length_only = [
        pair.row_number for at, pair in enumerate(usable) if at not in equal_at and _one_begins_other(*pair.texts)
    ]
    duplicates = num_duplicates(repr((pair.prompt, pair.chosen, pair.rejected)) for pair in pairs)
    leaked = [pair.row_number for pair in pairs if repr(pair.prompt) in held_out]
    lengths = Lengths.of([len(ids) for row in rows for ids in _ids(row)])
    ended = sum(side.input_ids[-1] in renderer.stop_ids for row in rows for side in row.rows)
    if over and too_long == "error":
        errors.append(
            f"{_pairs(over)} with a side longer than {max_length:,} tokens (the longest has {lengths.longest:,}); raise "
            "data.max_length, or drop such pairs with data.too_long: drop"
        )
    elif over and too_long == "cut":
        errors.append(
            f"{_pairs(over)} with a side longer than {max_length:,} tokens, and a truncated answer is not the "
            "one that was judged; raise data.max_length, or use data.too_long: drop"
        )
    elif over:
        warnings.append(f"{_pairs(over)} with a side longer than {max_length:,} tokens: dropped (data.too_long: drop)")
    if empty:
        warnings.append(f"{_pairs(empty)} with an empty answer; left out")
    if equal:
        warnings.append(f"{_pairs(equal)} with two identical answers; left out")
    if length_only:
        warnings.append(f"{_pairs(length_only)} that differ in length only: one answer is a prefix of the other")
    if ended < 2 * len(rows):
        warnings.append(f"{2 * len(rows) - ended:,} answers whose end token is not trained")
    if leaked:
        warnings.append(f"the prompts of {_pairs(leaked)} are also in the held-out rows")
    if duplicates:
        warnings.append(f"{duplicates:,} pairs are duplicates")
    texts = [repr((pair.prompt, said)) for pair in usable for said in pair.texts]
    warnings += odd_tokens([side for row in rows for side in row.rows], renderer, num_duplicates(texts))
    better = [row.chosen.num_trained for row in rows]
    worse = [row.rejected.num_trained for row in rows]
    longer = [a > b for a, b in zip(better, worse, strict=True) if a != b]
    share = sum(longer) / len(longer) if longer else 0.5
    if len(rows) >= FEWEST_FOR_BIAS and len(longer) >= len(rows) / 2 and not 1 - LOPSIDED < share < LOPSIDED:
        kind = "longer" if share > 0.5 else "shorter"
        warnings.append(
            f"the chosen answer is the {kind} one in {max(share, 1 - share):.0%} of the pairs that differ in length: a "
            "model could learn nothing but length"
        )
    kept = [at for at in range(len(rows)) if at not in equal_at | over_at]
    if not kept and not errors:
        errors.append(f"no pair is left: {len(equal):,} are equal, {len(empty):,} empty, {len(over):,} too long")
    report = PairReport(
        name=name,
        form=form,
        rows=len(pairs),
        tokens=lengths.total,
        trained_tokens=sum(row.num_trained for row in rows),
        shortest=lengths.shortest,
        median=lengths.median,
        longest=lengths.longest,
        max_length=max_length,
        rows_over_limit=len(over),
        equal_pairs=len(equal),
        empty_pairs=len(empty),
        pairs_that_differ_in_length_only=len(length_only),
        rows_with_trained_end=ended,
        duplicate_rows=duplicates,
        prompts_also_in_test=len(leaked),
        chosen_length=mean(better) if better else 0.0,
        rejected_length=mean(worse) if worse else 0.0,
        chosen_is_longer=sum(a > b for a, b in zip(better, worse, strict=True)) / max(len(rows), 1),
        errors=tuple(errors),
        warnings=tuple(warnings),
    )
    return report, kept


def _ids(row: PairRow) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return row.chosen.input_ids, row.rejected.input_ids


def _equal(pair: Pair, row: PairRow) -> bool:
    """Whether the answers are the same but for blanks at their ends."""
    better, worse = pair.texts
    return better.strip() == worse.strip() or row.chosen.input_ids == row.rejected.input_ids


def _one_begins_other(better: str, worse: str) -> bool:
    short, long = sorted((better.strip(), worse.strip()), key=len)
    return long.startswith(short.rstrip(".!?… "))


def _pairs(numbers: Sequence[int]) -> str:
    return named(numbers, "pair", "row")
