"""The whole path of the data: names of files → checked token rows, before any model is loaded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.data.check import CheckReport, check_rows
from fitune.data.files import Rows, read_rows
from fitune.data.forms import Form, recognise, to_example
from fitune.data.render import Renderer
from fitune.data.rows import Example, TokenRow
from fitune.data.tasks import demo_rows, is_demo
from fitune.errors import DataError

FAULTS_SHOWN = 5


@dataclass(frozen=True)
class PreparedData:
    """Rows ready to train and to evaluate on. `hashes` are SHA-256 of the files as they were read."""

    train: list[TokenRow]
    test: list[TokenRow]
    train_examples: list[Example]
    test_examples: list[Example]
    train_report: CheckReport
    test_report: CheckReport | None
    hashes: dict[str, str]

    @property
    def report(self) -> CheckReport:
        """The report of the training rows."""
        return self.train_report

    @property
    def warnings(self) -> tuple[str, ...]:
        """Everything worth showing, test rows' after the training rows'."""
        own = self.train_report.warnings
        return own + tuple(f"test rows: {text}" for text in (self.test_report.warnings if self.test_report else ()))


@dataclass(frozen=True)
class DataOptions:
    """How rows are read, rendered and limited; the plain values of the settings' data section."""

    method: str = "sft"
    form: str = "auto"
    columns: Mapping[str, str] | None = None
    system: str | None = None
    loss_on: str = "auto"
    response_template: str | None = None
    max_length: int | None = None
    too_long: str = "error"
    hub_split: str = "train"
    seed: int = 42


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
    return _prepare(train, test, renderer, DataOptions(**options), test_share, exclude)


def _prepare(
    train: str, test: str | None, renderer: Renderer, options: DataOptions, test_share: float, exclude: Sequence[str]
) -> PreparedData:
    """`prepare` with its options in one object."""
    rows, form, examples = load_examples(train, renderer, options, exclude)
    if test is not None:
        test_rows, _, test_examples = load_examples(test, renderer, options)
    else:
        test_rows = None
        examples, test_examples = set_aside(examples, test_share, options.seed)
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
    generated = is_demo(name)
    rows = (
        demo_rows(name, renderer.tokenizer, options.seed, exclude) if generated else read_rows(name, options.hub_split)
    )
    form = recognise(rows.columns, options.form, options.columns)
    if options.method == "lm" and form.name != "text":
        raise DataError(
            f"method lm trains on plain text (a column named text), and {name} has the form {form.name}; "
            "use method: sft, or data.columns={text: COLUMN}"
        )
    examples, faults = [], []
    for row, number in zip(rows.rows, rows.numbers, strict=True):
        try:
            examples.append(to_example(row, form, options.system, number))
        except DataError as error:
            faults.append(str(error))
    if faults:
        more = f"\n  … and {len(faults) - FAULTS_SHOWN:,} more" if len(faults) > FAULTS_SHOWN else ""
        listed = "\n".join(f"  {fault}" for fault in faults[:FAULTS_SHOWN])
        raise DataError(
            f"{name} ({form.name}): {len(faults):,} of {len(rows.rows):,} rows cannot be used\n{listed}{more}"
        )
    return rows, form, examples


def loss_target(options: DataOptions, form: Form) -> str:
    """Which tokens are trained, `auto` resolved."""
    if form.name == "text" or options.method == "lm":
        return "all"
    if options.loss_on != "auto":
        return options.loss_on
    return "completion" if form.name in ("prompt_completion", "alpaca") else "assistant"


def set_aside(examples: Sequence[Example], share: float, seed: int) -> tuple[list[Example], list[Example]]:
    """(training, test) examples. Equal rows are never on both sides; at least one row is kept for each side."""
    if share == 0 or len(examples) < 2:
        return list(examples), []
    keys = [repr(example.messages or example.text) for example in examples]
    distinct = list(dict.fromkeys(keys))
    random.Random(seed).shuffle(distinct)
    count = min(max(1, round(share * len(distinct))), len(distinct) - 1)
    held_out = set(distinct[:count])
    sides = [], []
    for example, key in zip(examples, keys, strict=True):
        sides[key in held_out].append(example)
    return sides


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
    rows = list(renderer.tokenize(rendered))
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


def split_file(path: Path, share: float, seed: int, out_train: Path, out_test: Path) -> tuple[int, int]:
    """Split a data file into two JSON Lines files, no row in both; returns their numbers of rows.

    Raises:
        DataError: unreadable, too few rows, or a file that exists.
    """
    from fitune.data.tasks import write_jsonl

    if not 0 < share < 1:
        raise DataError(f"the test share is {share}; use a share between 0 and 1, for example 0.1")
    for out in (out_train, out_test):
        if out.exists():
            raise DataError(f"{out} exists already; name another file or delete it")
    rows = read_rows(str(path)).rows
    if len(rows) < 2:
        raise DataError(f"{path} has 1 row; two are needed to split it")
    wrapped = [Example(None, repr(row), index) for index, row in enumerate(rows)]
    train, test = set_aside(wrapped, share, seed)
    return (
        write_jsonl((rows[example.row_number] for example in train), out_train),
        write_jsonl((rows[example.row_number] for example in test), out_test),
    )
