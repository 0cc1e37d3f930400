"""The line of progress: what it says, and what it leaves out where a terminal is narrow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fitune.trainers.callbacks import ProgressLine, _fitting


def line_after(steps: int, **measured: float) -> tuple[ProgressLine, Any, Any]:
    line = ProgressLine(quiet_seconds=1e9)
    line.bind(SimpleNamespace(step_loss=2.0, step_tokens=100, step_metrics=measured))  # type: ignore[arg-type]
    line.recent.extend((0.5, 100, {"loss": loss, **measured}) for loss in (3.0, 1.0))
    state = SimpleNamespace(global_step=steps, max_steps=20, epoch=0.5)
    return line, SimpleNamespace(eval_strategy="steps", eval_steps=10), state


def test_the_loss_is_a_mean_and_evaluations_to_come_count_in_the_time_left():
    line, args, state = line_after(4)
    said = line.words(args, state, 2e-4)
    assert said == "step 4/20 · loss 2 · 0:08 left · 200 tokens/s · epoch 0.50 · lr 0.0002"
    line.evaluation_s = 60.0
    assert "2:08 left" in line.words(args, state, None)


def test_reward_and_kl_stand_beside_the_loss():
    line, args, state = line_after(4, reward=0.25, kl=0.01, reward_std=1.0)
    assert "loss 2 · reward 0.25 · KL 0.01 ·" in line.words(args, state, None)


def test_what_does_not_fit_the_line_is_left_out():
    assert _fitting(["step 1/2", "loss 2", "0:08 left"], 17) == "step 1/2 · loss 2"
    assert _fitting(["step 1/2", "loss 2"], 3) == "step 1/2"
