"""What a data set would teach, counted before anything is trained: errors stop, warnings are shown.

In: rendered rows and their tokens. Out: `CheckReport`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from difflib import SequenceMatcher

import numpy as np

from fitune.data.render.renderer import Renderer
from fitune.data.reports.counting import Lengths, named, span
from fitune.data.reports.odd_tokens import odd_facts
from fitune.data.row_set import RowSet


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Counts of one data set, and what is wrong with it."""

    name: str
    form: str
    loss_on: str
    rows: int
    tokens: int
    trained_tokens: int
    shortest: int
    median: int
    longest: int
    max_length: int | None
    rows_over_limit: int
    answer_tokens_lost: int
    rows_without_target: int
    rows_with_trained_end: int
    rows_with_double_bos: int
    duplicate_rows: int
    rows_also_in_test: int
    token_rows: int
    rows_with_reasoning: int
    rows_with_tools: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for `--json` and the manifest."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report in words, a fact a line."""
        share = self.trained_tokens / self.tokens if self.tokens else 0
        end_share = self.rows_with_trained_end / self.token_rows if self.token_rows else 0
        return [
            f"rows                  {self.rows:,} ({self.form}){self._apart()}",
            f"tokens                {self.tokens:,}; a row has {span(self)}",
            f"trained tokens        {self.trained_tokens:,} ({share:.0%}), loss on {self.loss_on}",
            f"end token trained     in {end_share:.0%} of the rows",
            f"reasoning             in {self.rows_with_reasoning:,} rows; tools in {self.rows_with_tools:,}",
            f"over the limit        {self.rows_over_limit:,} rows, {self.answer_tokens_lost:,} answer tokens in them",
            f"nothing to train on   {self.rows_without_target:,} rows",
            f"doubled BOS           {self.rows_with_double_bos:,} rows",
            f"duplicates            {self.duplicate_rows:,} rows; {self.rows_also_in_test:,} also in the held-out rows",
        ]

    def _apart(self) -> str:
        """A word on conversations whose turns are rows of their own."""
        if self.token_rows == self.rows:
            return ""
        return f", trained as {self.token_rows:,}: the template rewrites history, so turns are rows of their own"


def check_rows(
    name: str,
    form: str,
    loss_on: str,
    found: RowSet,
    renderer: Renderer,
    *,
    max_length: int | None,
    too_long: str,
    response_template: str | None,
    eval_texts: np.ndarray,
) -> CheckReport:
    """Count, and say what is wrong. The rows are whole: nothing has been cut yet.

    Args:
        eval_texts: hashes of the texts of the held-out rows.
    """
    places = found.places
    facts, numbers = found.measured.at(places), found.numbers[places]
    lengths = Lengths.of(facts.tokens)
    over = facts.tokens > max_length if max_length else np.zeros(len(places), dtype=bool)
    empty = facts.targets + facts.lost == 0
    unended = ~empty & ~facts.ended
    lost = int(facts.lost.sum())
    duplicates = len(found.chosen) - len(np.unique(np.frombuffer(found.facts.keys, np.int64)[found.chosen]))
    leaked = numbers[np.isin(found.texts[places], eval_texts)].tolist()
    errors, warnings = [], _odd_roles(found)
    if over.any() and too_long == "error":
        errors.append(
            f"{_rows(numbers[over])} longer than {max_length:,} tokens (the longest has {lengths.longest:,}), {lost:,} answer "
            "tokens beyond the limit; raise data.max_length, or choose data.too_long: drop or cut"
        )
    elif over.any() and over.all():
        errors.append(f"every row is longer than {max_length:,} tokens; raise data.max_length")
    elif over.any():
        done = "left out" if too_long == "drop" else f"cut, {lost:,} answer tokens lost"
        warnings.append(f"{_rows(numbers[over])} longer than {max_length:,} tokens: {done} (data.too_long: {too_long})")
    if empty.any() and empty.all():
        first = renderer.render(found.examples[int(found.chosen[0])], loss_on, response_template)[0]
        errors.append(nothing_to_train(renderer.marks.shown(first.text), first.row_number, response_template))
    elif empty.any():
        warnings.append(f"{_rows(numbers[empty])} with nothing to train on; left out")
    if unended.any():
        warnings.append(
            f"{_rows(numbers[unended])} whose end token is not trained: the model would not learn to stop there; "
            "the template writes no end token after the answer, or the response ends without one"
        )
    if facts.double_bos.any():
        warnings.append(
            f"{_rows(numbers[facts.double_bos])} that begin with two BOS tokens; remove the BOS text from the data"
        )
    if duplicates:
        warnings.append(f"{duplicates:,} rows are duplicates")
    warnings += odd_facts(facts, numbers, renderer, duplicates)
    if leaked:
        warnings.append(f"{len(leaked):,} rows are also in the held-out rows, for example row {leaked[0]}")
    return CheckReport(
        name=name,
        form=form,
        loss_on=loss_on,
        rows=len(found.chosen),
        token_rows=len(places),
        rows_with_reasoning=found.count(found.facts.reasons),
        rows_with_tools=found.count(found.facts.tools),
        tokens=lengths.total,
        trained_tokens=int((facts.targets + facts.lost).sum()),
        shortest=lengths.shortest,
        median=lengths.median,
        longest=lengths.longest,
        max_length=max_length,
        rows_over_limit=int(over.sum()),
        answer_tokens_lost=lost,
        rows_without_target=int(empty.sum()),
        rows_with_trained_end=int(facts.ended.sum()),
        rows_with_double_bos=int(facts.double_bos.sum()),
        duplicate_rows=duplicates,
        rows_also_in_test=len(leaked),
        errors=tuple(errors),
        warnings=tuple(warnings),
    )


def nothing_to_train(text: str, number: int, response_template: str | None) -> str:
    """The message for a data set whose every label is masked: a row as rendered, and the nearest marker in it."""
    shown = text if len(text) <= 400 else text[:400] + " …"
    message = f"no row has a token to train on. Row {number} as rendered:\n{shown}"
    if response_template:
        near = _nearest(text, response_template)
        message += f"\ndata.response_template is {response_template!r}, which is not in it; nearest is {near!r}"
    return message


def _nearest(text: str, marker: str) -> str:
    """The piece of `text` of the marker's length that is most like it."""
    size = len(marker)
    pieces = {text[at : at + size] for at in range(max(1, min(len(text), 4000) - size + 1))}
    return max(pieces, key=lambda piece: SequenceMatcher(None, piece, marker).ratio())


def _odd_roles(found: RowSet) -> list[str]:
    """Warnings for unknown roles, empty messages, and answers that nobody asked for."""
    facts = found.facts
    firsts = {
        role: places[np.isin(places, found.chosen)][:1].tolist()
        for role, places in ((role, np.asarray(held)) for role, held in facts.unusual.items())
    }
    warnings = [
        f'role "{role}" is unusual, first in row {facts.numbers[first]}'
        for role, places in firsts.items()
        for first in places
    ]
    if blank := found.numbers_of(facts.blank):
        warnings.append(f"{named(blank)} with a blank message")
    if unasked := found.numbers_of(facts.unasked):
        warnings.append(f"{named(unasked)} that begin with an answer")
    return warnings


def _rows(numbers: np.ndarray) -> str:
    return named(numbers.tolist())
