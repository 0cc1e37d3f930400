"""Single answers with a judgement: a prompt, an answer, and whether it is wanted → token rows.

In: a source's name and `DataOptions`. Out: `PreparedData` of `JudgedRow`s, and a `JudgedReport`.
How a row is read is decided in read/forms/unpaired.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fitune.data.examples import Judged
from fitune.data.read.files import Rows
from fitune.data.read.recognise import RecognisedForm
from fitune.data.read.sources import DataOptions, PreparedData, convert_all, read_facts, read_source, set_aside
from fitune.data.render.asking import system_of, thinking_of
from fitune.data.render.renderer import Renderer
from fitune.data.render.token_cache import tokenize_kept
from fitune.data.reports.counting import refuse
from fitune.data.reports.judged_report import JudgedReport, check_judged
from fitune.data.token_rows import JudgedRow, TokenRow


def prepare_judged(
    train: str,
    eval_source: str | None,
    renderer: Renderer,
    options: DataOptions,
    eval_share: float,
    exclude: Sequence[str],
) -> PreparedData:
    """Judged answers ready to train on. Answers to one prompt stay on one side of the split.

    Raises:
        DataError: with every fault found.
    """
    source, form = read_source(train, renderer.tokenizer, options, exclude)
    judged = _read(source, form, renderer, options)
    hashes, eval_read = {source.name: source.sha256}, None
    if eval_source is not None:
        other, other_form = read_source(eval_source, renderer.tokenizer, options)
        held_out = _read(other, other_form, renderer, options)
        hashes[other.name] = other.sha256
        eval_read = read_facts(other, other_form)
    else:
        judged, held_out = set_aside(judged, eval_share, options.seed, key=lambda row: repr(row.prompt))
    eval_rows, eval_kept, eval_report = [], [], None
    if held_out:
        name = eval_source or f"{eval_share:.0%} of {train}"
        eval_rows, eval_kept, eval_report = to_rows(name, form.name, held_out, renderer, options)
    seen = frozenset(repr(row.prompt) for row in held_out)
    rows, kept, report = to_rows(train, form.name, judged, renderer, options, seen)
    # What is not wanted is no answer to compare the model's own with.
    examples, eval_examples = ([row.example for row in side if row.desirable] for side in (kept, eval_kept))
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


def _read(source: Rows, form: RecognisedForm, renderer: Renderer, options: DataOptions) -> list[Judged]:
    def judged(row: Mapping[str, object], number: int) -> Judged:
        one = form.to_judged(row, options.system, number)
        if options.bad_rows == "drop":
            renderer.render_side(one.example, len(one.prompt))
        form.tally.note_if(renderer.quoted(one.example), number)
        return one

    return convert_all(source, form, judged, options.bad_rows)


def show_judged(name: str, renderer: Renderer, options: DataOptions, count: int) -> list[tuple[str, TokenRow]]:
    """The first answers as training sees them."""
    source, form = read_source(name, renderer.tokenizer, options)
    judged = _read(source, form, renderer, options)[:count]
    words = ["desirable" if row.desirable else "undesirable" for row in judged]
    return list(zip(words, _tokens(judged, renderer), strict=True))


def _tokens(judged: Sequence[Judged], renderer: Renderer) -> Sequence[TokenRow]:
    """Each answer behind its prompt, up to the answer's end."""
    return tokenize_kept(renderer, [renderer.render_side(row.example, len(row.prompt)) for row in judged])


def to_rows(
    name: str,
    form: str,
    judged: Sequence[Judged],
    renderer: Renderer,
    options: DataOptions,
    held_out: frozenset[str] = frozenset(),
) -> tuple[list[JudgedRow], list[Judged], JudgedReport]:
    """Token rows of the answers that can be trained on, those answers, and the report of all.

    Raises:
        DataError: what the check finds wrong.
    """
    tokens = _tokens(judged, renderer)
    report, kept = check_judged(name, form, judged, tokens, renderer, options.max_length, options.too_long, held_out)
    refuse(name, report.errors)
    rows = [tokens[index] for index in kept]
    others = mismatched(rows, [repr(judged[index].prompt) for index in kept], options.max_length)
    marked = [
        JudgedRow(row, judged[index].desirable, other) for index, row, other in zip(kept, rows, others, strict=True)
    ]
    return marked, [judged[index] for index in kept], report


def mismatched(rows: Sequence[TokenRow], prompts: Sequence[str], max_length: int | None = None) -> list[TokenRow]:
    """Each row's prompt with an answer to the prompt before it, the first one's with an answer to the last.

    Of several answers to a prompt the first row takes the first, the second the second, and so on in a circle. Where all
    prompts are the same, the answers are those to the prompt itself.

    Args:
        prompts: what tells the rows' prompts apart.
        max_length: longer rows are cut.
    """
    groups: dict[str, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    found: list[TokenRow] = list(rows)
    order = list(groups.values())
    for own, before in zip(order, order[-1:] + order[:-1], strict=True):
        for place, index in enumerate(own):
            found[index] = _spliced(rows[index], rows[before[place % len(before)]], max_length)
    return found


def _spliced(row: TokenRow, other: TokenRow, max_length: int | None) -> TokenRow:
    """The prompt of ``row`` with the answer of ``other``."""
    end, start = row.trained.index(True), other.trained.index(True)
    ids = (*row.input_ids[:end], *other.input_ids[start:])[:max_length]
    trained = (*row.trained[:end], *other.trained[start:])[:max_length]
    return TokenRow(ids, trained, row.row_number)
