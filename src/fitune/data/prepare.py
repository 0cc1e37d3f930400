"""The whole path of the data: names of files → checked token rows, before any model is loaded.

`prepare` is the door for every method; the way of plain rows (sft, lm) is here, that of pairs in pairs.py, that of
prompts in prompts.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fitune.data.preferences import pair_sides, prepare_pairs
from fitune.data.prompts import prepare_prompts, to_prompt
from fitune.data.read.files import Rows
from fitune.data.read.forms import Form, to_example
from fitune.data.read.sources import (
    DataOptions,
    PreparedData,
    convert_all,
    example_key,
    read_source,
    set_aside,
    split_file,
)
from fitune.data.render.renderer import Renderer
from fitune.data.render.token_cache import tokenize_kept
from fitune.data.report import CheckReport, check_rows
from fitune.data.rows import Example, TokenRow
from fitune.errors import DataError

__all__ = ["DataOptions", "PreparedData", "load_examples", "loss_target", "prepare", "rows_to_show", "split_file"]


def prepare(
    train: str,
    test: str | None,
    *,
    renderer: Renderer,
    test_share: float = 0.0,
    exclude: Sequence[str] = (),
    **options: Any,
) -> PreparedData:
    """Read, recognise, render, tokenize and check.

    Args:
        test_share: share of the training rows set aside when `test` is None; rows that are equal stay together.
        exclude: sentences that the demo task must not make.
        options: fields of `DataOptions`.

    Raises:
        DataError: with every fault found, before a model is loaded.
    """
    how = DataOptions(**options)
    way = {"pairs": prepare_pairs, "prompts": prepare_prompts}.get(how.reads, prepare_rows)
    return way(train, test, renderer, how, test_share, exclude)


def prepare_rows(
    train: str, test: str | None, renderer: Renderer, options: DataOptions, test_share: float, exclude: Sequence[str]
) -> PreparedData:
    """`prepare` for plain rows."""
    rows, form, examples = load_examples(train, renderer, options, exclude)
    if test is not None:
        test_rows, _, test_examples = load_examples(test, renderer, options)
    else:
        test_rows = None
        examples, test_examples = set_aside(examples, test_share, options.seed, example_key)
    loss_on = loss_target(options, form)
    test_tokens, test_report, test_texts = [], None, frozenset()
    if test_examples:
        test_name = test or f"{test_share:.0%} of {train}"
        test_tokens, test_examples, test_report, test_texts = _tokens(
            test_name, form, loss_on, test_examples, renderer, options
        )
    train_tokens, examples, train_report, _ = _tokens(train, form, loss_on, examples, renderer, options, test_texts)
    hashes = {rows.name: rows.sha256} | ({test_rows.name: test_rows.sha256} if test_rows else {})
    return PreparedData(train_tokens, test_tokens, examples, test_examples, train_report, test_report, hashes)


def load_examples(
    name: str, renderer: Renderer, options: DataOptions, exclude: Sequence[str] = ()
) -> tuple[Rows, Form, list[Example]]:
    """Rows of a data set in fitune's own form.

    Raises:
        DataError: unreadable, not recognised, or rows that are not of the form (several are listed).
    """
    rows, form = read_source(name, renderer.tokenizer, options, exclude)
    if options.reads == "text" and form.name != "text":
        raise DataError(
            f"method lm trains on plain text (a column named text), and {name} has the form {form.name}; "
            "use method: sft, or data.columns={text: COLUMN}"
        )
    return rows, form, convert_all(rows, form, lambda row, number: to_example(row, form, options.system, number))


def rows_to_show(name: str, renderer: Renderer, options: DataOptions, count: int) -> list[tuple[str, TokenRow]]:
    """The first rows as training sees them, each with its side: "", chosen, rejected or prompt.

    Raises:
        DataError: as `prepare`; what only the check finds wrong is shown all the same.
    """
    if options.reads in ("rows", "text"):
        _, form, examples = load_examples(name, renderer, options)
        target = loss_target(options, form)
        rendered = [renderer.render(example, target, options.response_template) for example in examples[:count]]
        return [("", row) for row in renderer.tokenize(rendered)]
    source, form = read_source(name, renderer.tokenizer, options)
    if options.reads == "pairs":
        return pair_sides(source, form, renderer, options, count)
    rows = convert_all(source, form, lambda row, number: to_prompt(row, form, options.system, number, renderer))[:count]
    return [("prompt", TokenRow(row.input_ids, (False,) * row.num_tokens, row.row_number)) for row in rows]


def loss_target(options: DataOptions, form: Form) -> str:
    """Which tokens are trained, `auto` resolved."""
    if form.name == "text" or options.reads == "text":
        return "all"
    if options.loss_on != "auto":
        return options.loss_on
    return "completion" if form.name in ("prompt_completion", "alpaca") else "assistant"


def _tokens(
    name: str,
    form: Form,
    loss_on: str,
    examples: list[Example],
    renderer: Renderer,
    options: DataOptions,
    test_texts: frozenset[str] = frozenset(),
) -> tuple[list[TokenRow], list[Example], CheckReport, frozenset[str]]:
    """Token rows that may be trained on (limit applied, rows without a target left out), and the check's report."""
    rendered = [renderer.render(example, loss_on, options.response_template) for example in examples]
    rows = tokenize_kept(renderer, rendered)
    report = check_rows(
        name, form.name, loss_on, examples, rendered, rows, renderer,
        max_length=options.max_length, too_long=options.too_long,
        response_template=options.response_template, test_texts=test_texts,
    )  # fmt: skip
    if report.errors:
        raise DataError("\n".join([f"{name} cannot be trained on:", *(f"  {error}" for error in report.errors)]))
    kept_rows, kept_examples = [], []
    for row, example in zip(rows, examples, strict=True):
        limit = options.max_length
        if limit and len(row.input_ids) > limit:
            if options.too_long == "drop":
                continue
            row = TokenRow(row.input_ids[:limit], row.trained[:limit], row.row_number)
        if row.num_trained:
            kept_rows.append(row)
            kept_examples.append(example)
    if not kept_rows:
        raise DataError(f"{name}: no row is left to train on; raise data.max_length (now {options.max_length})")
    return kept_rows, kept_examples, report, frozenset(row.text for row in rendered)
