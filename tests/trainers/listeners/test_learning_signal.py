"""Runs that learn nothing say so: at once where a step has nothing to learn from, and at the end."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fitune
from fitune.runs import manifest as manifests
from fitune.trainers.listeners.learning_signal import LearningSignal, weights_digest

RL: dict[str, Any] = {
    "rewards": ["regex:."],
    "num_generations": 4,
    "max_new_tokens": 4,
    "truncated_reward": None,
}


def test_the_only_step_of_a_run_learns(settings_of, capfd):
    """T01: warm-up took the one step there was, with a rate of 0."""
    result = fitune.train(settings_of(train__max_steps=1, eval__samples=0))
    tensors = load_file(result.saved / "adapter_model.safetensors")
    assert all(value.any() for name, value in tensors.items() if "lora_B" in name)
    assert result.after["loss"] != result.before["loss"]
    assert "learnt nothing" not in capfd.readouterr().err


def watched(tiny, folder, rows, **changed):
    trainer = tiny.trainer(folder, tiny.llama(), rows, **changed)
    signal = LearningSignal()
    signal.bind(trainer)
    trainer.add_callback(signal)
    return trainer


def test_weights_that_stay_as_they_were_are_told(tiny, tmp_path, capfd):
    trainer = watched(tiny, tmp_path, tiny.make_rows(8), learning_rate=0.0)
    trainer.train()
    said = capfd.readouterr().err
    assert "learnt nothing: its weights are as they were before step 1 (the learning rate was 0 in every step)" in said
    assert "teaches nothing" not in said


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_equal_rewards_are_told_at_once_and_at_the_end(settings_of, capfd, method):
    """R02: every answer matches, so no answer is better than another."""
    changed = {"rl__kl_coef": 0.0} if method == "grpo" else {}
    rl = {**RL, "rewards": ["regex:^"], **{name.removeprefix("rl__"): value for name, value in changed.items()}}
    result = fitune.train(settings_of(method=method, rl=rl, train__max_steps=2, eval__samples=0))
    said = capfd.readouterr().err
    assert "step 1 teaches nothing: every answer earned the same reward, 1 (1 of 1 steps so far)" in said
    assert "the run learnt nothing: none of its 2 steps had anything to learn from (every answer earned" in said
    assert manifests.read(result.folder / "manifest.json")["results"]["steps_without_signal"] == 2


def test_a_run_whose_answers_differ_says_nothing(settings_of, capfd):
    rl = {**RL, "rewards": ["regex:[aeiou]"], "temperature": 2.0}
    fitune.train(settings_of(method="grpo", rl=rl, train__max_steps=2, eval__samples=0))
    assert "nothing" not in capfd.readouterr().err


def test_steps_without_a_gradient_are_told(tiny, tmp_path, capfd):
    """Rows whose only token is the first have nothing to predict."""
    rows = [type(row)(row.input_ids, (False,) * len(row.input_ids), row.row_number) for row in tiny.make_rows(8)]
    trainer = watched(tiny, tmp_path, rows)
    trainer.train()
    said = capfd.readouterr().err
    assert "step 1 teaches nothing: every gradient is 0" in said and "none of its 2 steps" in said
    assert trainer.extra_state["signal"]["without"] == 2


def test_the_digest_moves_with_any_weight():
    values = [torch.zeros(3, 4), torch.ones(5)]
    before = weights_digest(values)
    assert before == weights_digest(values)
    values[1][4] += 1e-7
    assert before != weights_digest(values)
