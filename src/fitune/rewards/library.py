"""The rewards that come with fitune. Each takes lists with one item an answer and returns numbers from 0 to 1."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import partial

from fitune.answer_metrics import equal, sentence_chrf, word_similarity
from fitune.demo.pig_latin import to_pig_latin

Reward = Callable[..., Sequence[float]]


def exact(answers: Sequence[str], wanted: Sequence[str | None]) -> list[float]:
    """1 when the answer is the wanted one, blanks around both aside."""
    return [float(equal(answer, right)) for answer, right in zip(answers, _there(wanted), strict=True)]


def regex(pattern: re.Pattern[str], answers: Sequence[str]) -> list[float]:
    """1 when the pattern is found in the answer; `^` and `$` tie it to the ends of the whole answer."""
    return [float(pattern.search(answer) is not None) for answer in answers]


def chrf(answers: Sequence[str], wanted: Sequence[str | None]) -> list[float]:
    """chrF2 of each answer against the wanted one (Popović 2015), by sacrebleu."""
    return sentence_chrf(answers, _there(wanted))


def length(limit: int, answers: Sequence[str]) -> list[float]:
    """1 for at most `limit` words, then falling evenly to 0 at twice as many."""
    return [min(1.0, max(0.0, 2 - len(answer.split()) / limit)) for answer in answers]


def valid_json(keys: Sequence[str], answers: Sequence[str]) -> list[float]:
    """1 when the answer is JSON and nothing else; with keys: the share of them that the object has."""

    def one(answer: str) -> float:
        try:
            value = json.loads(answer)
        except (ValueError, RecursionError):
            return 0.0
        if not keys:
            return 1.0
        return sum(key in value for key in keys) / len(keys) if isinstance(value, dict) else 0.0

    return [one(answer) for answer in answers]


def words(answers: Sequence[str], wanted: Sequence[str | None]) -> list[float]:
    """The share of words that stand at their place as wanted; words too many count as wrong ones."""
    return [word_similarity(answer, right) for answer, right in zip(answers, _there(wanted), strict=True)]


def pig_latin(answers: Sequence[str], questions: Sequence[str]) -> list[float]:
    """The share of words that are the Pig Latin of the question's, by the rule of `fitune.demo.pig_latin`."""
    return [
        word_similarity(answer, to_pig_latin(question)) for answer, question in zip(answers, questions, strict=True)
    ]


def _there(wanted: Sequence[str | None]) -> list[str]:
    """The wanted answers; ValueError where the data has none."""
    there = [right for right in wanted if right is not None]
    if len(there) < len(wanted):
        raise ValueError("the data has no reference answer for this row, which this reward needs")
    return there


def _pattern(argument: str) -> Reward:
    if not argument:
        raise ValueError("needs a pattern, for example regex:^[0-9]+$")
    try:
        return partial(regex, re.compile(argument))
    except re.error as error:
        raise ValueError(f"has an invalid pattern: {error}") from error


def _limit(argument: str) -> Reward:
    if not argument.isdigit() or int(argument) == 0:
        raise ValueError("needs the maximum number of words, 1 or more, for example length:20")
    return partial(length, int(argument))


def _keys(argument: str) -> Reward:
    return partial(valid_json, [key.strip() for key in argument.split("+") if key.strip()])


def _plain(function: Reward) -> Callable[[str], Reward]:
    def make(argument: str) -> Reward:
        if argument:
            raise ValueError(f'takes no argument, and has "{argument}"')
        return function

    return make


# name → the function that makes the reward from what stands behind the colon
LIBRARY: dict[str, Callable[[str], Reward]] = {
    "exact": _plain(exact),
    "chrf": _plain(chrf),
    "words": _plain(words),
    "pig_latin": _plain(pig_latin),
    "regex": _pattern,
    "length": _limit,
    "json": _keys,
}
