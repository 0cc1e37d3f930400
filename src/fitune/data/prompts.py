"""Prompts alone, for methods that answer them themselves: any form with answers gives its prompts and references.

In: a source's name and `DataOptions`. Out: `PreparedData` of `PromptRow`s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from fitune.data.examples import Example
from fitune.data.read.files import Rows
from fitune.data.read.forms.cells import say
from fitune.data.read.recognise import RecognisedForm
from fitune.data.read.sources import DataOptions, PreparedData, convert_all, read_facts, read_source, set_aside
from fitune.data.render.asking import system_of, thinking_of
from fitune.data.render.renderer import Renderer
from fitune.data.reports.counting import Lengths, num_duplicates, span
from fitune.data.token_rows import PromptRow, TokenRow
from fitune.errors import DataError


@dataclass(frozen=True, kw_only=True)
class PromptReport:
    """Counts of a set of prompts, and what is wrong with it."""

    name: str
    form: str
    rows: int
    tokens: int
    shortest: int
    median: int
    longest: int
    max_length: int | None
    rows_over_limit: int
    rows_with_reference: int
    duplicate_rows: int
    rows_also_in_test: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for `--json` and the manifest."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The report in words, a fact a line."""
        return [
            f"prompts               {self.rows:,} ({self.form}), {self.rows_with_reference:,} with a reference answer",
            f"tokens                {self.tokens:,}; a prompt has {span(self)}",
            f"over the limit        {self.rows_over_limit:,} prompts",
            f"duplicates            {self.duplicate_rows:,} prompts; {self.rows_also_in_test:,} also in the held-out rows",
        ]


def prepare_prompts(
    train: str,
    eval_source: str | None,
    renderer: Renderer,
    options: DataOptions,
    eval_share: float,
    exclude: Sequence[str],
) -> PreparedData:
    """Prompts ready to be answered; those that are equal stay on one side of the split.

    Raises:
        DataError: unreadable rows, prompts over the limit, or none left.
    """
    source, form = read_source(train, renderer.tokenizer, options, exclude)
    rows = _read(source, form, renderer, options)
    hashes, eval_read = {source.name: source.sha256}, None
    if eval_source is not None:
        other, other_form = read_source(eval_source, renderer.tokenizer, options)
        eval_rows = _read(other, other_form, renderer, options)
        hashes[other.name] = other.sha256
        eval_read = read_facts(other, other_form)
    else:
        rows, eval_rows = set_aside(rows, eval_share, options.seed, key=lambda row: repr(row.messages))
    eval_report = None
    if eval_rows:
        eval_rows, eval_report = _limited(eval_source or f"{eval_share:.0%} of {train}", form, eval_rows, options)
    held_out = frozenset(row.input_ids for row in eval_rows)
    rows, report = _limited(train, form, rows, options, held_out)
    return PreparedData(
        train=rows,
        eval=eval_rows,
        train_examples=(examples := _examples(rows)),
        eval_examples=_examples(eval_rows),
        train_report=report,
        eval_report=eval_report,
        hashes=hashes,
        thinking=thinking_of(examples),
        system=system_of(examples),
        train_read=read_facts(source, form),
        eval_read=eval_read,
    )


def show_prompts(name: str, renderer: Renderer, options: DataOptions, count: int) -> list[tuple[str, TokenRow]]:
    """The first prompts as the model is asked them; nothing of them is trained."""
    source, form = read_source(name, renderer.tokenizer, options)
    rows = _read(source, form, renderer, options)[:count]
    return [("prompt", TokenRow(row.input_ids, (False,) * row.num_tokens, row.row_number)) for row in rows]


def _to_prompt(
    row: Mapping[str, object], form: RecognisedForm, system: str | None, number: int, renderer: Renderer
) -> PromptRow:
    """A row as a prompt; its last answer, if there is one, becomes the reference.

    Raises:
        DataError: a row without a question.
    """
    example = form.to_conversation(row, system, number)
    form.tally.note_if(renderer.quoted(example), number)
    messages = list(example.messages or ())
    reference = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    if not any(message["role"] == "user" for message in messages):
        raise DataError(f"row {number} has no question to answer")
    try:
        ids = renderer.prompt_ids(messages, example.tools)
    except DataError as error:
        raise type(error)(f"row {number}: {error}") from error
    return PromptRow(
        input_ids=tuple(ids),
        messages=tuple(messages),
        reference=reference,
        columns=dict(row),
        row_number=number,
    )


def _read(source: Rows, form: RecognisedForm, renderer: Renderer, options: DataOptions) -> list[PromptRow]:
    return convert_all(
        source, form, lambda row, number: _to_prompt(row, form, options.system, number, renderer), options.bad_rows
    )


def _limited(
    name: str,
    form: RecognisedForm,
    rows: list[PromptRow],
    options: DataOptions,
    held_out: frozenset[tuple[int, ...]] = frozenset(),
) -> tuple[list[PromptRow], PromptReport]:
    """Prompts within the limit, and the report of all."""
    limit, warnings = options.max_length, []
    lengths = Lengths.of([row.num_tokens for row in rows])
    over = [row for row in rows if limit and row.num_tokens > limit]
    if over and options.too_long != "drop":
        raise DataError(
            f"{name}: {len(over):,} prompts are longer than {limit:,} tokens (row {over[0].row_number} has "
            f"{over[0].num_tokens:,}); raise data.max_length, or drop them with data.too_long: drop"
            + (" (a prompt cannot be truncated: its end is the question)" if options.too_long == "cut" else "")
        )
    kept = [row for row in rows if not limit or row.num_tokens <= limit]
    if not kept:
        raise DataError(f"{name}: every prompt is longer than {limit:,} tokens; raise data.max_length")
    if over:
        warnings.append(f"{len(over):,} prompts longer than {limit:,} tokens: dropped (data.too_long: drop)")
    duplicates = num_duplicates(row.input_ids for row in rows)
    leaked = [row for row in rows if row.input_ids in held_out]
    if duplicates:
        warnings.append(f"{duplicates:,} prompts are duplicates")
    if leaked:
        warnings.append(
            f"{len(leaked):,} prompts are also in the held-out rows, for example row {leaked[0].row_number}"
        )
    report = PromptReport(
        name=name,
        form=form.name,
        rows=len(rows),
        tokens=lengths.total,
        shortest=lengths.shortest,
        median=lengths.median,
        longest=lengths.longest,
        max_length=limit,
        rows_over_limit=len(over),
        rows_with_reference=sum(row.reference is not None for row in rows),
        duplicate_rows=duplicates,
        rows_also_in_test=len(leaked),
        warnings=tuple(warnings),
    )
    return kept, report


def _examples(rows: Sequence[PromptRow]) -> list[Example]:
    """The rows as conversations, with the reference as the answer where there is one."""
    examples = []
    for row in rows:
        answer = [say("assistant", row.reference)] if row.reference else []
        examples.append(Example(messages=(*row.messages, *answer), text=None, row_number=row.row_number))
    return examples
