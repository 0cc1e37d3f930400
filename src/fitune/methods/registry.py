"""What a method of training is to the run: the few functions in which methods differ.

In: a word of ``method:``. Out: its `Method`, from the one file of this room that tells the method from top to bottom:

    supervised.py   sft, lm     next-token prediction on the trained tokens
    reward.py       reward      a scalar that prefers the better answer of a pair
    dpo.py          dpo         preferences without a reward model
    ppo.py          ppo         rewards for its own answers, with a value head
    grpo.py         grpo        rewards for its own answers, each against the others to its prompt

run.py calls these functions in order; everything else of a run (folder, checkpoints, resume, report) is shared. What a
method reads is decided in data/ (`fitune.data.read.sources.KINDS`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from fitune.training.finalize import save_result

MODULES = {"sft": "sft", "lm": "sft", "reward": "reward", "dpo": "dpo", "ppo": "ppo", "grpo": "grpo"}


@dataclass(frozen=True)
class Method:
    """The functions of one method; they are the last that see a settings object."""

    adapt: Callable[..., Any]
    """(settings, base) → the model with its trained parameters marked."""
    make_trainer: Callable[..., Any]
    """(settings, run, ready, base, model, arguments, interrupt) → a `FituneTrainer`, or what behaves like one."""
    learning_rates: Mapping[str, float]
    """``train.tuning`` → the learning rate when none is set."""
    save: Callable[..., Any] = save_result
    """(trainer, model, base, run, tuning) → the folder of what was trained."""
    metrics: tuple[str, ...] = ("loss", "exact_match", "word_accuracy", "chrf")
    """What an evaluation measures, out of which ``eval.best_metric`` may choose."""


def method_of(name: str) -> Method:
    """The method of that name; its module is imported here and not before."""
    return import_module(f"fitune.methods.{MODULES[name]}.trainer").METHOD
