"""Plain rows (sft, lm): a conversation or a text each → token rows with a loss mask.

In: a source's name and `DataOptions`. Out: `PreparedData` of `TokenRow`s, and a `CheckReport`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fitune.data.examples import Example, Rendered
from fitune.data.read.files import Rows
from fitune.data.read.recognise import RecognisedForm
from fitune.data.read.sources import (
    DataOptions,
    PreparedData,
    convert_all,
    example_key,
    read_facts,
    read_source,
    refuse_rows,
    set_aside,
)
from fitune.data.render.renderer import Renderer
from fitune.data.render.token_cache import tokenize_kept
from fitune.data.reports.counting import refuse
from fitune.data.reports.report import CheckReport, check_rows
from fitune.data.token_rows import TokenRow
from fitune.errors import DataError


def prepare_rows(
    train: str,
    eval_source: str | None,
    renderer: Renderer,
    options: DataOptions,
    eval_share: float,
    exclude: Sequence[str],
) -> PreparedData:
    """Rows ready to train on; rows that are equal stay on one side of the split.

    Raises:
        DataError: with every fault found.
    """
    rows, form, examples = load_examples(train, renderer, options, exclude)
    if eval_source is not None:
        eval_rows, eval_form, eval_examples = load_examples(eval_source, renderer, options)
    else:
        eval_rows = eval_form = None
        examples, eval_examples = set_aside(examples, eval_share, options.seed, example_key)
    loss_on = loss_target(options, form)
    eval_tokens, eval_report, eval_texts = [], None, frozenset()
    if eval_examples:
        eval_name = eval_source or f"{eval_share:.0%} of {train}"
        eval_tokens, eval_examples, eval_report, eval_texts = _tokens(
            eval_name, form, loss_on, eval_examples, renderer, options
        )
    train_tokens, examples, train_report, _ = _tokens(train, form, loss_on, examples, renderer, options, eval_texts)
    hashes = {rows.name: rows.sha256} | ({eval_rows.name: eval_rows.sha256} if eval_rows else {})
    train_read = read_facts(rows, form)
    eval_read = read_facts(eval_rows, eval_form) if eval_rows and eval_form else None
    return PreparedData(
        train=train_tokens,
        eval=eval_tokens,
        train_examples=examples,
        eval_examples=eval_examples,
        train_report=train_report,
        eval_report=eval_report,
        hashes=hashes,
        train_read=train_read,
        eval_read=eval_read,
    )


def load_examples(
    name: str, renderer: Renderer, options: DataOptions, exclude: Sequence[str] = ()
) -> tuple[Rows, RecognisedForm, list[Example]]:
    """Rows of a data set in fitune's own form.

    Raises:
        DataError: unreadable, not recognised, or rows that are not of the form (several are listed).
    """
    rows, form = read_source(name, renderer.tokenizer, options, exclude)
    return rows, form, convert_all(rows, form, lambda row, number: form.to_example(row, options.system, number))


def show_rows(name: str, renderer: Renderer, options: DataOptions, count: int) -> list[tuple[str, TokenRow]]:
    """The first rows as training sees them; what only the check finds wrong is shown all the same."""
    _, form, examples = load_examples(name, renderer, options)
    target = loss_target(options, form)
    rendered = render_all(name, examples[:count], renderer, target, options.response_template)
    return [("", row) for row in renderer.tokenize(rendered)]


def render_all(
    name: str, examples: Sequence[Example], renderer: Renderer, loss_on: str, response_template: str | None
) -> list[Rendered]:
    """Every example rendered, in order; several rows for an example whose history the template rewrites.

    Raises:
        DataError: rows that cannot be trained as chat would ask for them (several are listed).
    """
    rendered: list[Rendered] = []
    faults: list[str] = []
    for example in examples:
        try:
            rendered += renderer.render(example, loss_on, response_template)
        except DataError as error:
            faults.append(str(error))
    refuse_rows(name, faults, len(examples))
    return rendered


def loss_target(options: DataOptions, form: RecognisedForm) -> str:
    """Which tokens are trained, `auto` resolved."""
    if form.is_text:
        return "all"
    return form.facts.loss_on if options.loss_on == "auto" else options.loss_on


def _tokens(
    name: str,
    form: RecognisedForm,
    loss_on: str,
    examples: list[Example],
    renderer: Renderer,
    options: DataOptions,
    eval_texts: frozenset[str] = frozenset(),
) -> tuple[list[TokenRow], list[Example], CheckReport, frozenset[str]]:
    """Token rows that may be trained on (limit applied, rows without a target left out), and the check's report."""
    rendered = render_all(name, examples, renderer, loss_on, options.response_template)
    rows = tokenize_kept(renderer, rendered)
    report = check_rows(
        name, form.name, loss_on, examples, rendered, rows, renderer,
        max_length=options.max_length, too_long=options.too_long,
        response_template=options.response_template, eval_texts=eval_texts,
    )  # fmt: skip
    refuse(name, report.errors)
    kept_rows: list[TokenRow] = []
    for row in rows:
        limit = options.max_length
        if limit and row.num_tokens > limit:
            if options.too_long == "drop":
                continue
            row = row.cut(limit)
        if row.num_trained:
            kept_rows.append(row)
    if not kept_rows:
        raise DataError(f"{name}: no row is left to train on; raise data.max_length (now {options.max_length})")
    numbers = {row.row_number for row in kept_rows}
    kept = [example for example in examples if example.row_number in numbers]
    return kept_rows, kept, report, frozenset(row.text for row in rendered)
