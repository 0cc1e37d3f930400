"""Whether a run learns anything at all: steps without a gradient or a reward to tell answers apart, unchanged weights.

In: the trainer's steps. Out: warnings, at the first such step and at the end; counts in the trainer's ``extra_state``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TypedDict, cast

import torch
from torch import Tensor
from torch.optim import Optimizer
from transformers import TrainerControl, TrainerState, TrainingArguments

from fitune.console import warn
from fitune.distributed import together
from fitune.trainers.callbacks import TrainerListener
from fitune.trainers.parallel.sharding import local, whole

REMINDER = 10  # steps without a signal between two warnings
SIGNAL = "signal"


class SignalState(TypedDict):
    """What is kept with the checkpoints; start: `weights_digest` before step one."""

    start: str
    steps: int
    without: int
    highest_rate: float


class LearningSignal(TrainerListener):
    """Warns of steps that teach nothing, and at the end of a run that left its weights as they were."""

    def __init__(self) -> None:
        self.gradient = False

    @property
    def state(self) -> SignalState:
        """Counts of the run so far, over its resumptions."""
        return cast(SignalState, self.trainer.extra_state[SIGNAL])

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if SIGNAL not in self.trainer.extra_state:
            start = weights_digest(value for _, value in self.trainer.trained_parameters())
            self.trainer.extra_state[SIGNAL] = SignalState(start=start, steps=0, without=0, highest_rate=0.0)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        values = (value for _, value in self.trainer.trained_parameters())
        here = any(value.grad is not None and bool(local(value.grad).any()) for value in values)
        self.gradient = any(together.gather(here, "gradients are looked at")) if self.trainer.sharded else here
        groups = cast(Optimizer, self.trainer.optimizer).param_groups
        self.state["highest_rate"] = max(self.state["highest_rate"], *(float(group["lr"]) for group in groups))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        count = self.state
        count["steps"] += 1
        why = self.trainer.no_signal() or (None if self.gradient else "every gradient is 0")
        if why is None:
            return
        count["without"] += 1
        if count["without"] % REMINDER == 1:
            warn(
                f"step {state.global_step} teaches nothing: {why} ({count['without']} of {count['steps']} steps so far)"
            )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        count = self.state
        if not count["steps"]:
            return
        if count["without"] == count["steps"]:
            why = self.trainer.no_signal() or "every gradient was 0"
            warn(f"the run learnt nothing: none of its {count['steps']} steps had anything to learn from ({why})")
        elif weights_digest(value for _, value in self.trainer.trained_parameters()) == count["start"]:
            rate = "the learning rate was 0 in every step" if not count["highest_rate"] else "the updates round to 0"
            warn(
                f"the run learnt nothing: its weights are as they were before step 1 ({rate}); "
                "raise train.learning_rate, or train for more steps"
            )


def weights_digest(values: Iterable[Tensor]) -> str:
    """Hash of each tensor's sum, which moves when a weight does; nothing is copied."""
    digest = hashlib.sha256()
    for value in values:
        wide = torch.float32 if value.device.type == "mps" else torch.float64
        digest.update(whole(value.detach().sum(dtype=wide)).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
