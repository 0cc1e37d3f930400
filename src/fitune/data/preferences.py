"""Preference pairs: a prompt, a better answer and a worse one → token rows that share the prompt.

In: a source's name and `DataOptions`. Out: `PreparedData` of `PairRow`s, and a `PairReport`.
How a row is read is decided in read/forms/preference_pairs.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fitune.data.examples import Pair
from fitune.data.read.files import Rows
from fitune.data.read.recognise import RecognisedForm
from fitune.data.read.sources import DataOptions, PreparedData, convert_all, read_facts, read_source, set_aside
from fitune.data.render.asking import system_of, thinking_of
from fitune.data.render.renderer import Renderer
from fitune.data.render.token_cache import tokenize_kept
from fitune.data.reports.counting import refuse
from fitune.data.reports.pair_report import PairReport, check_pairs
from fitune.data.token_rows import PairRow, TokenRow


def prepare_pairs(
    train: str,
    eval_source: str | None,
    renderer: Renderer,
    options: DataOptions,
    eval_share: float,
    exclude: Sequence[str],
) -> PreparedData:
    """Pairs ready to train on. Pairs of one prompt stay on one side of the split.

    Raises:
        DataError: with every fault found.
    """
    source, form = read_source(train, renderer.tokenizer, options, exclude)
    pairs = _read(source, form, renderer, options)
    hashes, eval_read = {source.name: source.sha256}, None
    if eval_source is not None:
        other, other_form = read_source(eval_source, renderer.tokenizer, options)
        held_out = _read(other, other_form, renderer, options)
        hashes[other.name] = other.sha256
        eval_read = read_facts(other, other_form)
    else:
        pairs, held_out = set_aside(pairs, eval_share, options.seed, key=lambda pair: repr(pair.prompt))
    eval_rows, eval_kept, eval_report = [], [], None
    if held_out:
        name = eval_source or f"{eval_share:.0%} of {train}"
        eval_rows, eval_kept, eval_report = to_rows(name, form.name, held_out, renderer, options)
    seen = frozenset(repr(pair.prompt) for pair in held_out)
    rows, kept, report = to_rows(train, form.name, pairs, renderer, options, seen)
    examples, eval_examples = ([pair.example(better=True) for pair in side] for side in (kept, eval_kept))
    return PreparedData(
        train=rows,
        eval=eval_rows,
        train_examples=examples,
        eval_examples=eval_examples,
        train_report=report,
        eval_report=eval_report,
        hashes=hashes,
        thinking=thinking_of(examples),
        system=system_of(examples),
        train_read=read_facts(source, form),
        eval_read=eval_read,
    )


def _read(source: Rows, form: RecognisedForm, renderer: Renderer, options: DataOptions) -> list[Pair]:
    def pair(row: Mapping[str, object], number: int) -> Pair:
        one = form.to_pair(row, options.system, number)
        sides = [one.example(better) for better in (True, False)]
        for side in sides if options.bad_rows == "drop" else ():
            renderer.render_side(side, len(one.prompt))
        form.tally.note_if(next(filter(None, map(renderer.quoted, sides)), None), number)
        return one

    return convert_all(source, form, pair, options.bad_rows)


def show_pairs(name: str, renderer: Renderer, options: DataOptions, count: int) -> list[tuple[str, TokenRow]]:
    """Both sides of the first pairs, as training sees them."""
    source, form = read_source(name, renderer.tokenizer, options)
    pairs = [
        pair for pair in _read(source, form, renderer, options)[:count] if all(text.strip() for text in pair.texts)
    ]
    return list(zip(("chosen", "rejected") * len(pairs), _side_rows(pairs, renderer), strict=True))


def _side_rows(pairs: Sequence[Pair], renderer: Renderer) -> Sequence[TokenRow]:
    """Each pair's better row, then its worse one, up to the answer's end."""
    rendered = [
        renderer.render_side(pair.example(better), len(pair.prompt)) for pair in pairs for better in (True, False)
    ]
    return tokenize_kept(renderer, rendered)


def to_rows(
    name: str,
    form: str,
    pairs: Sequence[Pair],
    renderer: Renderer,
    options: DataOptions,
    held_out: frozenset[str] = frozenset(),
) -> tuple[list[PairRow], list[Pair], PairReport]:
    """Token rows of the pairs that can be trained on, those pairs, and the report of all.

    Raises:
        DataError: what the check finds wrong.
    """
    usable = [pair for pair in pairs if all(text.strip() for text in pair.texts)]
    tokens = _side_rows(usable, renderer)
    rows = [
        PairRow(better, worse, pair.row_number)
        for pair, better, worse in zip(usable, tokens[::2], tokens[1::2], strict=True)
    ]
    report, kept = check_pairs(
        name, form, pairs, usable, rows, renderer, options.max_length, options.too_long, held_out
    )
    refuse(name, report.errors)
    return [rows[index] for index in kept], [usable[index] for index in kept], report
