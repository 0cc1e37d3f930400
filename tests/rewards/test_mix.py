"""Weights, the arguments that a reward takes, and everything that a reward can do wrong."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fitune.errors import RewardError
from fitune.rewards.guard import call
from fitune.rewards.mix import Mix, Part, Sample, read_mix

SAMPLES = [Sample("one two", "first?", row={"difficulty": 3}), Sample("three", "second?", row={"difficulty": 5})]


def test_weights_are_summed_and_each_reward_is_kept() -> None:
    sums, own = read_mix(["2*length:1", r"-0.5 * regex:two", "regex:three"]).score(SAMPLES)
    assert own == {"length:1": [0.0, 1.0], "regex:two": [1.0, 0.0], "regex:three": [0.0, 1.0]}
    assert sums == [-0.5, 3.0]
    assert read_mix(["exact"]).score([]) == ([], {"exact": []})


def test_a_function_gets_the_lists_that_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "def named(questions, difficulty, answers):\n"
        "    return [len(q) + d + len(a) for q, d, a in zip(questions, difficulty, answers)]\n"
        "def all_of_them(completions, **columns):\n    return columns['difficulty']\n"
        "def neither(questions):\n    return [0.0 for _ in questions]\n"
    )
    (tmp_path / "own_rewards.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert read_mix(["own_rewards.named"]).score(SAMPLES)[0] == [16.0, 17.0]
    assert read_mix([f"{tmp_path}/own_rewards.py:all_of_them"]).score(SAMPLES)[0] == [3.0, 5.0]
    with pytest.raises(RewardError, match="no argument named answers"):
        read_mix(["own_rewards.neither"]).score(SAMPLES)


def test_arrays_and_tensors_are_numbers_too() -> None:
    assert call("f", lambda answers: torch.tensor([1, 0]), {"answers": ["a", "b"]}, 5) == [1.0, 0.0]
    assert call("f", lambda answers: (True, 2), {"answers": ["a", "b"]}, 5) == [1.0, 2.0]


def raises(answers: list[str]) -> list[float]:
    raise KeyError("no such key")


def never_ends(answers: list[str]) -> list[float]:
    while True:
        try:
            time.sleep(0.01)
        except Exception:  # a reward that catches everything must not catch the end of its time
            continue


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        (raises, "f raised KeyError: 'no such key'; correct it and resume"),
        (lambda answers: [0.0], "returned 1 numbers for 2 answers"),
        (lambda answers: 0.5, "returned 0.5; return a list"),
        (lambda answers: [0.0, float("nan")], "gave nan for the answer 'b'"),
        (lambda answers: [0.0, float("inf")], "gave inf for the answer 'b'"),
        (lambda answers: [None, 1.0], "gave None for the answer 'a'"),
        (lambda answers: ["good", 1.0], "gave 'good' for the answer 'a'"),
        (never_ends, r"had not returned after 0\.\d s \(rl.reward_seconds 0.2\)"),
    ],
)
def test_what_a_reward_does_wrong_is_said(reward: Any, words: str) -> None:
    with pytest.raises(RewardError, match=words):
        call("f", reward, {"answers": ["a", "b"]}, 0.2)


def test_a_pattern_that_never_comes_back_is_ended() -> None:
    began = time.monotonic()
    with pytest.raises(RewardError, match="had not returned"):
        read_mix([r"regex:^(a+)+$"], seconds=0.3).score([Sample("a" * 40 + "!")])
    assert time.monotonic() - began < 5


def test_the_limit_holds_in_another_thread_too() -> None:
    found: list[str] = []

    def work() -> None:
        try:
            call("f", lambda answers: time.sleep(20), {"answers": ["a"]}, 0.2)
        except RewardError as error:
            found.append(str(error))

    worker = threading.Thread(target=work)
    worker.start()
    worker.join(5)
    assert "had not returned" in found[0]
    assert call("f", lambda answers: [1.0], {"answers": ["a"]}, 5) == [1.0]


def test_trying_out_says_that_nothing_was_trained() -> None:
    mix = Mix((Part("f", 1.0, raises, frozenset({"answers"})),))
    with pytest.raises(RewardError, match="tried before training: the reward f raised KeyError"):
        mix.try_out(SAMPLES)
