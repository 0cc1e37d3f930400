"""Preference pairs: a prompt, a better answer and a worse one → token rows that share the prompt.

In: a source's name and `DataOptions`. Out: `PreparedData` of `PairRow`s, and a `PairReport`.
The prompt may stand in a column of its own (text or messages), or be what the two conversations have in common.

Where the two sides part: in messages, at the first message that differs; in text, by the turns of Anthropic's form
("\n\nHuman: … \n\nAssistant: …"), or else at the last blank before the first character that differs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fitune.data.pair_report import PairReport, check_pairs
from fitune.data.read.forms import Form, side, with_system
from fitune.data.read.sources import DataOptions, PreparedData, convert_all, read_source, set_aside
from fitune.data.render.renderer import Renderer
from fitune.data.render.token_cache import tokenize_kept
from fitune.data.rows import Example, PairRow, TokenRow
from fitune.errors import DataError

Messages = list[dict[str, str]]
TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")


@dataclass(frozen=True)
class Pair:
    """A preference in messages: the prompt, and what follows it on either side."""

    prompt: tuple[dict[str, str], ...]
    chosen: tuple[dict[str, str], ...]
    rejected: tuple[dict[str, str], ...]
    row_number: int

    def example(self, better: bool) -> Example:
        """One side as a conversation."""
        return Example((*self.prompt, *(self.chosen if better else self.rejected)), None, self.row_number)

    @property
    def texts(self) -> tuple[str, str]:
        """What the two sides say."""
        return tuple("\n".join(said["content"] for said in answer) for answer in (self.chosen, self.rejected))  # type: ignore[return-value]


def prepare_pairs(
    train: str, test: str | None, renderer: Renderer, options: DataOptions, test_share: float, exclude: Sequence[str]
) -> PreparedData:
    """Pairs ready to train on. Pairs of one prompt stay on one side of the split.

    Raises:
        DataError: with every fault found.
    """
    source, form = read_source(train, renderer.tokenizer, options, exclude)
    pairs = _read(source, form, options)
    hashes = {source.name: source.sha256}
    if test is not None:
        other, other_form = read_source(test, renderer.tokenizer, options)
        held_out = _read(other, other_form, options)
        hashes[other.name] = other.sha256
    else:
        pairs, held_out = set_aside(pairs, test_share, options.seed, key=lambda pair: repr(pair.prompt))
    test_rows, test_kept, test_report = [], [], None
    if held_out:
        name = test or f"{test_share:.0%} of {train}"
        test_rows, test_kept, test_report = to_rows(name, form.name, held_out, renderer, options)
    seen = frozenset(repr(pair.prompt) for pair in held_out)
    rows, kept, report = to_rows(train, form.name, pairs, renderer, options, seen)
    examples, test_examples = ([pair.example(better=True) for pair in side] for side in (kept, test_kept))
    return PreparedData(rows, test_rows, examples, test_examples, report, test_report, hashes)


def _read(source: Any, form: Form, options: DataOptions) -> list[Pair]:
    return convert_all(source, form, lambda row, number: to_pair(row, form, options.system, number))


def to_pair(row: Mapping[str, Any], form: Form, system: str | None, number: int) -> Pair:
    """A row as a pair.

    Raises:
        DataError: a side that is missing, sides without a common prompt, or a prompt that is not the one they begin with.
    """
    where = f"row {number}"
    better, worse, asked = form.get(row, "chosen"), form.get(row, "rejected"), form.get(row, "prompt")
    if isinstance(better, list) != isinstance(worse, list):
        raise DataError(f"{where}: chosen is {type(better).__name__} and rejected {type(worse).__name__}; use one kind")
    sides = [_answer(better, where, "chosen"), _answer(worse, where, "rejected")]
    prompt = side(asked, where, "prompt", "user") if asked is not None else []
    if isinstance(better, list):
        prompt, sides = _split_messages(prompt, sides, where)
    elif asked is None:
        prompt, sides = _split_text(str(better), str(worse), where)
    if any(said[-1]["role"] != "assistant" for said in sides):
        raise DataError(f"{where}: a side ends with a message of {sides[0][-1]['role']}; both must end with an answer")
    prompt = with_system(prompt, form.get(row, "system") or system)
    return Pair(tuple(prompt), tuple(sides[0]), tuple(sides[1]), number)


def _answer(value: Any, where: str, column: str) -> Messages:
    """A side as it stands: messages, or text as one answer; a blank one is for the check to find."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    return side(value, where, column, "assistant")


def _split_messages(prompt: Messages, sides: list[Messages], where: str) -> tuple[Messages, list[Messages]]:
    """Prompt and answers of sides that are conversations, or answers alone."""
    if all(said[0]["role"] == "assistant" for said in sides):
        if not prompt:
            raise DataError(f"{where} has no prompt: both sides begin with an answer, and there is no prompt column")
        return prompt, sides
    same = 0
    while all(same < len(said) - 1 for said in sides) and sides[0][same] == sides[1][same]:
        same += 1
    common = sides[0][:same]
    if not common:
        raise DataError(f"{where}: chosen and rejected have no first message in common, so there is no prompt")
    plain = [message for message in common if message["role"] != "system"]
    if prompt and [message for message in prompt if message["role"] != "system"] not in (plain, plain[: len(prompt)]):
        raise DataError(
            f"{where}: the prompt column ({prompt[-1]['content'][:40]!r}) is not what chosen and rejected begin with "
            f"({plain[0]['content'][:40]!r})"
        )
    return common, [said[same:] for said in sides]


def _split_text(better: str, worse: str, where: str) -> tuple[Messages, list[Messages]]:
    """Prompt and answers of sides that are whole texts."""
    if "\n\nAssistant:" in better and "\n\nAssistant:" in worse:
        return _split_messages([], [_turns(text) for text in (better, worse)], where)
    same = next(
        (i for i, (a, b) in enumerate(zip(better, worse, strict=False)) if a != b), min(len(better), len(worse))
    )
    blank = max(better.rfind(mark, 0, same) for mark in " \n\t") + 1
    prompt = better[:blank].strip()
    if not prompt:
        raise DataError(
            f"{where} has no prompt: chosen and rejected have no beginning in common "
            f"({better[:30]!r}, {worse[:30]!r}); add a prompt column"
        )
    return (
        [{"role": "user", "content": prompt}],
        [[{"role": "assistant", "content": text[blank:]}] for text in (better, worse)],
    )


def _turns(text: str) -> Messages:
    r"""Messages of a text in Anthropic's form (hh-rlhf): "\n\nHuman: … \n\nAssistant: …"."""
    pieces = TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]


def pair_sides(
    source: Any, form: Form, renderer: Renderer, options: DataOptions, count: int
) -> list[tuple[str, TokenRow]]:
    """Both sides of the first pairs, as training sees them."""
    pairs = [pair for pair in _read(source, form, options)[:count] if all(text.strip() for text in pair.texts)]
    return list(zip(("chosen", "rejected") * len(pairs), _side_rows(pairs, renderer), strict=True))


def _side_rows(pairs: Sequence[Pair], renderer: Renderer) -> list[TokenRow]:
    """Each pair's better row, then its worse one, up to the answer's end."""
    rendered = [
        renderer.render(pair.example(better), "assistant", first_message=len(pair.prompt))
        for pair in pairs
        for better in (True, False)
    ]
    return [row.up_to_last_trained() for row in tokenize_kept(renderer, rendered)]


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
    if report.errors:
        raise DataError("\n".join([f"{name} cannot be trained on:", *(f"  {error}" for error in report.errors)]))
    return [rows[index] for index in kept], [usable[index] for index in kept], report
