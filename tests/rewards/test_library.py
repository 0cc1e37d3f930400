"""The rewards that come with fitune, each on answers whose worth is plain to see."""

from __future__ import annotations

from typing import Any

import pytest

from fitune.errors import SettingsError
from fitune.rewards.mix import Sample, read_mix


def scores(spec: str, *samples: Sample) -> list[float]:
    return read_mix([spec]).score(samples)[0]


def log(answer: str, **more: Any) -> Sample:
    return Sample(answer, **more)


def test_exact_looks_past_blanks_only() -> None:
    assert scores("exact", log(" yes\n", wanted="yes"), log("Yes", wanted="yes")) == [1.0, 0.0]


def test_regex_is_found_anywhere_unless_it_is_tied() -> None:
    assert scores(r"regex:\d+", log("about 12 of them"), log("none")) == [1.0, 0.0]
    assert scores(r"regex:^\d+$", log("12"), log("12 of them")) == [1.0, 0.0]


def test_chrf_is_one_for_the_wanted_text_and_falls_with_distance() -> None:
    same, near, far = scores(
        "chrf", log("a birch canoe", wanted="a birch canoe"), log("a beech canoe", wanted="a birch canoe"),
        log("xyz", wanted="a birch canoe"),
    )  # fmt: skip
    assert same == pytest.approx(1.0)
    assert 0.2 < near < 0.9
    assert far < 0.05


def test_length_falls_evenly_to_nothing_at_twice_the_limit() -> None:
    assert scores("length:4", log("a b c"), log("a b c d"), log("a b c d e f"), log("a " * 9)) == [1.0, 1.0, 0.5, 0.0]


def test_json_alone_and_with_keys() -> None:
    good, text, half = log('{"name": 1, "age": 2}'), log('here: {"name": 1}'), log('{"name": 1}')
    assert scores("json", good, text, log("[1, 2]")) == [1.0, 0.0, 1.0]
    assert scores("json:name+age", good, text, half, log("[1]")) == [1.0, 0.0, 0.5, 0.0]


def test_words_wanted_at_their_places() -> None:
    assert scores("words", log("a b x", wanted="a b c"), log("b c", wanted="a b c")) == [pytest.approx(2 / 3), 0.0]


def test_pig_latin_is_checked_by_rule_and_words_too_many_cost() -> None:
    right, half, long = scores(
        "pig_latin", log("Ethay igpay.", question="The pig."), log("Ethay pig.", question="The pig."),
        log("Ethay igpay. Ethay igpay.", question="The pig."),
    )  # fmt: skip
    assert (right, half, long) == (1.0, 0.5, 0.5)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("pig_latn", 'did you mean "pig_latin"'),
        ("regex:(", "invalid pattern"),
        ("regex", "needs a pattern"),
        ("length:none", "needs the maximum number of words"),
        ("exact:more", "takes no argument"),
        ("no_such_module.function", "cannot be imported"),
        ("fitune.rewards.library.chrff", 'did you mean "chrf"'),
        ("nowhere.py:f", "does not exist"),
        ("run:some", "learnt reward"),
    ],
)
def test_a_name_that_is_no_reward_says_why(spec: str, words: str) -> None:
    with pytest.raises(SettingsError, match=r"rl\.rewards") as raised:
        read_mix([spec])
    assert words in str(raised.value)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(SettingsError) as raised:
        read_mix(["exactt", "length:0", "chrf", "0.5*chrf"])
    assert len(raised.value.faults) == 3
    with pytest.raises(SettingsError, match="is empty"):
        read_mix([])
