"""What judged answers would teach: counts of both kinds, and rows that contradict one another.

In: judged answers as messages and as token rows. Out: `JudgedReport`, and which rows may be trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import mean

from fitune.data.examples import Judged
from fitune.data.render.renderer import Renderer
from fitune.data.reports.counting import Lengths, named, num_duplicates, span
from fitune.data.reports.odd_tokens import odd_tokens
from fitune.data.token_rows import TokenRow


@dataclass(frozen=True, kw_only=True)
class JudgedReport:
    """Counts of one set of judged answers, and what is wrong with it. Lengths are in tokens."""

    name: str
    form: str
    rows: int
    desirable: int
    undesirable: int
    prompts: int
    tokens: int
    trained_tokens: int
    shortest: int
    median: int
    longest: int
    max_length: int | None
    rows_over_limit: int
    contradicting_rows: int
    rows_with_trained_end: int
    duplicate_rows: int
    prompts_also_in_test: int
    desirable_length: float
    undesirable_length: float
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for `--json` and the manifest."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report in words, a fact a line."""
        return [
            f"answers               {self.rows:,} ({self.form}): {self.desirable:,} desirable, {self.undesirable:,} "
            f"undesirable, to {self.prompts:,} prompts",
            f"tokens                {self.tokens:,}; a row has {span(self)}",
            f"answer tokens         {self.trained_tokens:,}, the only ones that are trained",
            f"end token trained     in {self.rows_with_trained_end:,} of {self.rows:,} rows",
            f"over the limit        {self.rows_over_limit:,} rows",
            f"contradictions        {self.contradicting_rows:,} rows: the same answer is labelled true and false",
            f"answer length         {self.desirable_length:.1f} tokens desirable, {self.undesirable_length:.1f} "
            "undesirable",
            f"duplicates            {self.duplicate_rows:,} rows; the prompts of {self.prompts_also_in_test:,} are also "
            "in the held-out rows",
        ]


def check_judged(
    name: str,
    form: str,
    judged: Sequence[Judged],
    rows: Sequence[TokenRow],
    renderer: Renderer,
    max_length: int | None,
    too_long: str,
    held_out: frozenset[str],
) -> tuple[JudgedReport, list[int]]:
    """Count, and say what is wrong.

    Args:
        rows: those of ``judged``.
        held_out: prompts of the held-out rows.

    Returns:
        The report, and the places of the rows that may be trained on.
    """
    over = {row.row_number for row in rows if max_length and row.num_tokens > max_length}
    kept = [index for index, row in enumerate(rows) if row.row_number not in over]
    lengths = Lengths.of([row.num_tokens for row in rows])
    wanted = [row.num_trained for row, one in zip(rows, judged, strict=True) if one.desirable]
    unwanted = [row.num_trained for row, one in zip(rows, judged, strict=True) if not one.desirable]
    prompts = [repr(one.prompt) for one in judged]
    errors, warnings = _over_the_limit(sorted(over), lengths.longest, max_length, too_long)
    if not kept and not errors:
        errors.append("no row is left: all are too long; raise data.max_length")
    report = JudgedReport(
        name=name,
        form=form,
        rows=len(judged),
        desirable=len(wanted),
        undesirable=len(unwanted),
        prompts=len(set(prompts)),
        tokens=lengths.total,
        trained_tokens=sum(wanted) + sum(unwanted),
        shortest=lengths.shortest,
        median=lengths.median,
        longest=lengths.longest,
        max_length=max_length,
        rows_over_limit=len(over),
        contradicting_rows=len(contradictions(judged)),
        rows_with_trained_end=sum(row.input_ids[-1] in renderer.stop_ids for row in rows),
        duplicate_rows=num_duplicates(repr((one.prompt, one.completion, one.desirable)) for one in judged),
        prompts_also_in_test=sum(prompt in held_out for prompt in prompts),
        desirable_length=mean(wanted) if wanted else 0.0,
        undesirable_length=mean(unwanted) if unwanted else 0.0,
        errors=tuple(errors),
        warnings=(),
    )
    warnings += odd_tokens(rows, renderer, num_duplicates(repr((one.prompt, one.completion)) for one in judged))
    return replace(report, warnings=(*warnings, *_warnings(report, judged))), kept


def contradictions(judged: Sequence[Judged]) -> list[int]:
    """Numbers of the rows whose answer to the same prompt is labelled otherwise elsewhere."""
    labels: dict[str, set[bool]] = {}
    for one in judged:
        labels.setdefault(repr((one.prompt, one.completion)), set()).add(one.desirable)
    return [one.row_number for one in judged if len(labels[repr((one.prompt, one.completion))]) > 1]


def _over_the_limit(
    over: Sequence[int], longest: int, max_length: int | None, too_long: str
) -> tuple[list[str], list[str]]:
    """Errors and warnings about rows that are too long."""
    if not over:
        return [], []
    what = f"{named(over)} longer than {max_length:,} tokens"
    if too_long == "error":
        return [
            f"{what} (the longest has {longest:,}); raise data.max_length, or leave such rows out with data.too_long: drop"
        ], []
    if too_long == "cut":
        return [
            f"{what}, and an answer that is cut is another answer than the one that was judged; raise data.max_length, "
            "or use data.too_long: drop"
        ], []
    return [], [f"{what}: left out (data.too_long: drop)"]


def _warnings(report: JudgedReport, judged: Sequence[Judged]) -> list[str]:
    warnings = []
    if not report.desirable or not report.undesirable:
        kind = "true" if report.desirable else "false"
        warnings.append(f"every label is {kind}: nothing tells good answers from bad ones")
    if report.prompts == 1:
        warnings.append("there is a single prompt, so that the KL term is measured on answers to the prompt itself")
    if report.contradicting_rows:
        warnings.append(f"{named(contradictions(judged))} whose answer is labelled true and false")
    if ended := report.rows - report.rows_with_trained_end:
        warnings.append(f"{ended:,} answers whose end token is not trained")
    if report.prompts_also_in_test:
        warnings.append(f"the prompts of {report.prompts_also_in_test:,} rows are in the held-out rows too")
    if report.duplicate_rows:
        warnings.append(f"{report.duplicate_rows:,} rows are there more than once")
    return warnings
