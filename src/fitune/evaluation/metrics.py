"""Scores of answers against what was wanted, each from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence


def exact_match(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of answers equal to what was wanted, blanks around them aside."""
    pairs = list(zip(answers, wanted, strict=True))
    return sum(answer.strip() == right.strip() for answer, right in pairs) / len(pairs) if pairs else 0.0


def word_accuracy(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """Share of all wanted words that stand at their place in the answer, exactly as wanted.

    Words are what blanks part; punctuation and capitals count. A missing word is wrong, a word too many costs
    nothing by itself, but shifts those behind it.
    """
    right = total = 0
    for answer, reference in zip(answers, wanted, strict=True):
        words = reference.split()
        total += len(words)
        right += sum(said == word for said, word in zip(answer.split(), words, strict=False))
    return right / total if total else 0.0


def chrf(answers: Sequence[str], wanted: Sequence[str]) -> float:
    """chrF2 of the whole set (Popović 2015), by sacrebleu, on 0 to 1."""
    from sacrebleu.metrics.chrf import CHRF

    return CHRF().corpus_score(list(answers), [list(wanted)]).score / 100 if answers else 0.0


def score(answers: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """All of them, by the names that the settings' `eval.best_metric` knows."""
    return {
        "exact_match": exact_match(answers, wanted),
        "word_accuracy": word_accuracy(answers, wanted),
        "chrf": chrf(answers, wanted),
    }
