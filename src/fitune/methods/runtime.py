"""`Runtime`: the functions in which methods differ once a run has begun.

run.py calls them in order; everything else of a run (folder, checkpoints, resume, report) is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from fitune.methods.adapt import adapt
from fitune.methods.context import RunContext
from fitune.methods.save_result import save_result
from fitune.trainers.base import FituneTrainer

AnyTrainer = TypeVar("AnyTrainer", bound=FituneTrainer)


@dataclass(frozen=True, kw_only=True)
class Runtime(Generic[AnyTrainer]):
    """The functions of one method; ``RUNTIME`` of its trainer.py."""

    make_trainer: Callable[[RunContext, nn.Module], AnyTrainer]
    """(run, model) → the trainer with everything that listens to it."""
    adapt: Callable[[RunContext], nn.Module] = adapt
    """(run) → the model with its trained parameters marked."""
    save: Callable[[RunContext, AnyTrainer, nn.Module], Path] = save_result
    """(run, trainer, unwrapped model) → the folder of what was trained."""
