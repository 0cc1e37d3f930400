"""How near an answer is to the wanted one: what evaluation reports and what rewards pay, defined once.

Every score is from 0 to 1. Words are what blanks part, compared exactly: punctuation and capitals count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypedDict


def exact_match(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of answers equal to what was wanted, blanks around them aside."""
    pairs = list(zip(answers, wanted, strict=True))
    return sum(equal(answer, right) for answer, right in pairs) / len(pairs) if pairs else 0.0


def word_accuracy(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of all wanted words that stand at their place in the answer: Σ matching words / Σ wanted words.

    A missing word is wrong. A word too many costs nothing by itself, but shifts those behind it.
    """
    pairs = list(zip(answers, wanted, strict=True))
    total = sum(len(reference.split()) for _, reference in pairs)
    return sum(matching_words(answer, reference) for answer, reference in pairs) / total if total else 0.0


def chrf(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """chrF2 of the whole set (Popović 2015), by sacrebleu."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF().corpus_score(list(answers), [list(wanted)]).score / 100 if answers else 0.0


# What generated answers are measured by, by the names that `eval.best_metric` and metrics.jsonl know.
ANSWER_METRICS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    metric.__name__: metric for metric in (exact_match, word_accuracy, chrf)
}


def score(answers: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """Every metric of ANSWER_METRICS over the whole set.

    Raises:
        ValueError: not as many answers as references.
    """
    return {name: metric(answers, wanted) for name, metric in ANSWER_METRICS.items()}


class RowScores(TypedDict):
    """The metrics that say something of one answer by itself: chrF is of a whole set."""

    exact_match: float
    word_accuracy: float


def row_scores(answer: str, wanted: str) -> RowScores:
    """The scores of one answer."""
    return RowScores(exact_match=exact_match([answer], [wanted]), word_accuracy=word_accuracy([answer], [wanted]))


def equal(answer: str, wanted: str) -> bool:
    """Whether one answer is the wanted one, blanks around both aside."""
    return answer.strip() == wanted.strip()


def matching_words(answer: str, wanted: str) -> int:
    """Words of the answer that are the wanted one's word at the same place, counted from the start."""
    return sum(said == word for said, word in zip(answer.split(), wanted.split(), strict=False))


def word_similarity(answer: str, wanted: str) -> float:
    """Matching words of one answer as a share of the longer text's words: 1 only where both hold the same words.

    The rewards `words` and `pig_latin` pay this and not `word_accuracy`: there, words behind a complete answer cost
    nothing, and a policy would never learn to stop.
    """
    return matching_words(answer, wanted) / max(len(answer.split()), len(wanted.split()), 1)


def sentence_chrf(answers: Sequence[str], wanted: Sequence[str]) -> list[float]:
    """chrF2 of each answer by itself (Popović 2015), by sacrebleu, smoothed so that short answers do not score 0."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(eps_smoothing=True)
    return [metric.sentence_score(answer, [right]).score / 100 for answer, right in zip(answers, wanted, strict=True)]
