"""Expectations worked out by hand; chrF from sacrebleu itself."""

import pytest
from sacrebleu.metrics.chrf import CHRF

from fitune.answer_metrics import chrf, exact_match, score, word_accuracy


def test_by_hand():
    wanted = ["Ethay igpay eatsway.", "ymay ogday"]
    answers = [" Ethay igpay eatsway. ", "ymay atcay ogday"]
    assert exact_match(answers, wanted) == 0.5
    # 3 of 3, then ymay right and the second place wrong: 4 of 5.
    assert word_accuracy(answers, wanted) == 4 / 5
    assert word_accuracy(["ymay"], ["ymay ogday"]) == 0.5
    assert word_accuracy(["ymay ogday ogday"], ["ymay ogday"]) == 1
    assert word_accuracy(["Ymay"], ["ymay"]) == 0


def test_chrf_is_sacrebleus():
    assert chrf(["a cat"], ["a cap"]) == pytest.approx(CHRF().corpus_score(["a cat"], [["a cap"]]).score / 100)


def test_nothing_scores_nothing_and_unequal_lengths_are_our_mistake():
    assert score([], []) == {"exact_match": 0.0, "word_accuracy": 0.0, "chrf": 0.0}
    with pytest.raises(ValueError):
        score(["a"], [])
