"""Plain rows (sft, lm): a conversation or a text each → token rows with a loss mask.

In: a source's name and `DataOptions`. Out: `PreparedData` of `TokenRow`s, and a `CheckReport`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fitune.data.examples import Example, Rendered
from fitune.data.read.files import Rows
from fitune.data.read.recognise import RecognisedForm
from fitune.data.read.sources import (
    DataOptions,
    PreparedData,
    convert_all,
    read_facts,
    read_source,
    refuse_rows,
    set_aside,
)
from fitune.data.render.renderer import Renderer
from fitune.data.reports.counting import refuse
from fitune.data.reports.report import CheckReport, check_rows
from fitune.data.row_set import RowSet, row_set
from fitune.data.token_rows import TokenRow
from fitune.data.token_table import TokenRows
from fitune.errors import DataError

NO_TEXTS = np.empty(0, np.int64)


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
    source, form = read_source(train, renderer.tokenizer, options, exclude)
    loss_on = loss_target(options, form)
    found, held_out = row_set(source, form, renderer, options, loss_on), None
    eval_rows = eval_form = None
    if eval_source is not None:
        eval_rows, eval_form = read_source(eval_source, renderer.tokenizer, options)
        held_out = row_set(eval_rows, eval_form, renderer, options, loss_on)
    elif eval_share and len(found.chosen) > 1:
        kept, aside = set_aside(found.chosen.tolist(), eval_share, options.seed, lambda at: found.facts.keys[at])
        found, held_out = found.some(kept), found.some(aside)
    eval_side, eval_texts = _Side(), NO_TEXTS
    if held_out is not None:
        name = eval_source or f"{eval_share:.0%} of {train}"
        eval_side, eval_texts = _side(name, form, loss_on, held_out, renderer, options), held_out.texts[held_out.places]
    side = _side(train, form, loss_on, found, renderer, options, eval_texts)
    assert side.report is not None
    hashes = {source.name: source.sha256} | ({eval_rows.name: eval_rows.sha256} if eval_rows else {})
    return PreparedData(
        train=side.rows,
        eval=eval_side.rows,
        train_examples=side.examples,
        eval_examples=eval_side.examples,
        train_report=side.report,
        eval_report=eval_side.report,
        hashes=hashes,
        train_read=read_facts(source, form),
        eval_read=read_facts(eval_rows, eval_form) if eval_rows and eval_form else None,
        thinking=side.kept.thinking if side.kept else None,
        system=side.kept.system if side.kept else None,
    )


@dataclass(frozen=True, eq=False)
class _Side:
    """Rows to train on or to measure with; nothing by itself."""

    rows: Sequence[TokenRow] = ()
    examples: Sequence[Example] = ()
    report: CheckReport | None = None
    kept: RowSet | None = None


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


def _side(
    name: str,
    form: RecognisedForm,
    loss_on: str,
    found: RowSet,
    renderer: Renderer,
    options: DataOptions,
    eval_texts: np.ndarray = NO_TEXTS,
) -> _Side:
    """Token rows that may be trained on (limit applied, rows without a target left out), and the check's report."""
    limit = options.max_length
    report = check_rows(
        name, form.name, loss_on, found, renderer,
        max_length=limit, too_long=options.too_long,
        response_template=options.response_template, eval_texts=eval_texts,
    )  # fmt: skip
    refuse(name, report.errors)
    places = found.places
    facts = found.measured.at(places)
    fits = np.ones(len(places), dtype=bool) if limit is None or options.too_long == "cut" else facts.tokens <= limit
    places = places[fits & (facts.targets > 0)]
    if not len(places):
        raise DataError(f"{name}: no row is left to train on; raise data.max_length (now {limit})")
    kept = found.some(np.unique(found.owners[places]).tolist())
    return _Side(
        rows=TokenRows(found.pieces, found.numbers, places, limit if options.too_long == "cut" else None),
        examples=found.examples.chosen(kept.chosen.tolist()),
        report=report,
        kept=kept,
    )
