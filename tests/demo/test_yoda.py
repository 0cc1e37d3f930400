"""Yoda speak: the rule, and sentences that nobody has seen twice."""

from __future__ import annotations

import json

from click.testing import CliRunner

from fitune.cli import cli
from fitune.demo.tasks import demo_rows
from fitune.demo.yoda import make_yoda_sentences, to_yoda


def test_what_follows_the_verb_comes_first():
    made = to_yoda("the old farmer", "will carry", "the basket to the market")
    assert made.english == "The old farmer will carry the basket to the market."
    assert made.yoda == "The basket to the market, the old farmer will carry."
    assert to_yoda("I", "am", "tired").yoda == "Tired, I am."


def test_sentences_are_different_repeatable_and_held_apart():
    first = make_yoda_sentences(500, seed=1)
    assert first == make_yoda_sentences(500, seed=1)
    assert len({sentence.english for sentence in first}) == 500
    kept = {sentence.english for sentence in first}
    assert kept.isdisjoint(sentence.english for sentence in make_yoda_sentences(500, seed=2, exclude=kept))


def test_both_orders_hold_the_same_words():
    for sentence in make_yoda_sentences(300, seed=3):
        words, turned = (
            text.lower().rstrip(".").replace(",", "").split() for text in (sentence.english, sentence.yoda)
        )
        assert sorted(words) == sorted(turned) and words != turned
        assert sentence.yoda.count(",") == 1 and " a a" not in sentence.english


def test_the_demo_set_and_the_file_hold_the_same_rows(tmp_path):
    out = tmp_path / "yoda.jsonl"
    assert (
        CliRunner().invoke(cli, ["data", "make", "yoda", "--rows", "30", "--seed", "4", "--out", str(out)]).exit_code
        == 0
    )
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert rows == list(demo_rows("demo:yoda:30", None, 4))  # type: ignore[arg-type]
    assert set(rows[0]) == {"system", "prompt", "completion"}
