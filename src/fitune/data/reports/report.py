"""What a data set would teach, counted before anything is trained: errors stop, warnings are shown.

In: rendered rows and their tokens. Out: `CheckReport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher

import numpy as np

from fitune.data.examples import Example, Rendered
from fitune.data.read.sources import example_key
from fitune.data.render.renderer import Renderer
from fitune.data.reports.counting import Lengths, named, num_duplicates, span
from fitune.data.reports.odd_tokens import odd_tokens
from fitune.data.token_rows import TokenRow

KNOWN_ROLES = {"system", "user", "assistant", "tool"}


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
    examples: Sequence[Example],
    rendered: Sequence[Rendered],
    rows: Sequence[TokenRow],
    renderer: Renderer,
    *,
    max_length: int | None,
    too_long: str,
    response_template: str | None = None,
    eval_texts: frozenset[str] = frozenset(),
) -> CheckReport:
    """Count, and say what is wrong. `rows` are whole: nothing has been cut yet."""
    lengths = Lengths.of([row.num_tokens for row in rows])
    over = [row for row in rows if max_length and row.num_tokens > max_length]
    lost = sum(int(row.arrays[1][max_length:].sum()) for row in over) if max_length else 0
    empty = [row for row in rows if row.num_trained == 0]
    ended = [row for row in rows if _end_is_trained(row, renderer.stop_ids)]
    bos = renderer.tokenizer.bos_token_id
    double = [row for row in rows if bos is not None and row.arrays[0][:2].tolist() == [bos, bos]]
    duplicates = num_duplicates(map(example_key, examples))
    leaked = [row.row_number for row in rendered if row.text in eval_texts]
    errors, warnings = [], _odd_roles(examples)
    if over and too_long == "error":
        errors.append(
            f"{_rows(over)} longer than {max_length:,} tokens (the longest has {lengths.longest:,}), {lost:,} answer tokens "
            "beyond the limit; raise data.max_length, or choose data.too_long: drop or cut"
        )
    elif over and len(over) == len(rows):
        errors.append(f"every row is longer than {max_length:,} tokens; raise data.max_length")
    elif over:
        done = "left out" if too_long == "drop" else f"cut, {lost:,} answer tokens lost"
        warnings.append(f"{_rows(over)} longer than {max_length:,} tokens: {done} (data.too_long: {too_long})")
    if empty and len(empty) == len(rows):
        errors.append(nothing_to_train(rendered[0], response_template))
    elif empty:
        warnings.append(f"{_rows(empty)} with nothing to train on; left out")
    if rows and len(ended) < len(rows) - len(empty):
        missing = [row for row in rows if row.num_trained and not _end_is_trained(row, renderer.stop_ids)]
        warnings.append(
            f"{_rows(missing)} whose end token is not trained: the model would not learn to stop there; "
            "the template writes no end token after the answer, or the response ends without one"
        )
    if double:
        warnings.append(f"{_rows(double)} that begin with two BOS tokens; remove the BOS text from the data")
    if duplicates:
        warnings.append(f"{duplicates:,} rows are duplicates")
    warnings += odd_tokens(rows, renderer, duplicates)
    if leaked:
        warnings.append(f"{len(leaked):,} rows are also in the held-out rows, for example row {leaked[0]}")
    return CheckReport(
        name=name,
        form=form,
        loss_on=loss_on,
        rows=len(examples),
        token_rows=len(rows),
        rows_with_reasoning=sum(any(said.get("reasoning_content") for said in one.messages or ()) for one in examples),
        rows_with_tools=sum(bool(one.tools) for one in examples),
        tokens=lengths.total,
        trained_tokens=sum(row.num_trained for row in rows),
        shortest=lengths.shortest,
        median=lengths.median,
        longest=lengths.longest,
        max_length=max_length,
        rows_over_limit=len(over),
        answer_tokens_lost=lost,
        rows_without_target=len(empty),
        rows_with_trained_end=len(ended),
        rows_with_double_bos=len(double),
        duplicate_rows=duplicates,
        rows_also_in_test=len(leaked),
        errors=tuple(errors),
        warnings=tuple(warnings),
    )


def nothing_to_train(row: Rendered, response_template: str | None) -> str:
    """The message for a data set whose every label is masked: the row as rendered, and the nearest marker in it."""
    shown = row.text if len(row.text) <= 400 else row.text[:400] + " …"
    message = f"no row has a token to train on. Row {row.row_number} as rendered:\n{shown}"
    if response_template:
        near = _nearest(row.text, response_template)
        message += f"\ndata.response_template is {response_template!r}, which is not in it; nearest is {near!r}"
    return message


def _nearest(text: str, marker: str) -> str:
    """The piece of `text` of the marker's length that is most like it."""
    size = len(marker)
    pieces = {text[at : at + size] for at in range(max(1, min(len(text), 4000) - size + 1))}
    return max(pieces, key=lambda piece: SequenceMatcher(None, piece, marker).ratio())


def _end_is_trained(row: TokenRow, end_ids: Sequence[int]) -> bool:
    """Whether some end token is a target, by its position and not by its id alone."""
    ids, trained = row.arrays
    return bool(np.isin(ids[trained], end_ids).any())


def _odd_roles(examples: Sequence[Example]) -> list[str]:
    """Warnings for unknown roles, empty messages, and answers that nobody asked for."""
    unknown: dict[str, int] = {}
    blank, unasked = [], []
    for example in examples:
        messages = example.messages or ()
        for message in messages:
            if message["role"] not in KNOWN_ROLES:
                unknown.setdefault(message["role"], example.row_number)
            if not message["content"].strip() and not message.get("tool_calls"):
                blank.append(example.row_number)
        roles = [message["role"] for message in messages if message["role"] != "system"]
        if roles and roles[0] == "assistant":
            unasked.append(example.row_number)
    warnings = [f'role "{role}" is unusual, first in row {number}' for role, number in unknown.items()]
    if blank:
        warnings.append(f"{named(blank)} with a blank message")
    if unasked:
        warnings.append(f"{named(unasked)} that begin with an answer")
    return warnings


def _rows(rows: Sequence[TokenRow]) -> str:
    return named([row.row_number for row in rows])
