"""What listens to the trainer: the metrics file, the progress on the screen, the best checkpoint, signals.

In: transformers' callback events, plain values. Out: rows of metrics.jsonl, lines on stderr, flags in `control`.
"""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, cast

from rich.progress import BarColumn, Progress, TaskID, TextColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fitune.console import log, progress_in, stderr_console, warn
from fitune.signals import ENDING, handled, raise_stopped

if TYPE_CHECKING:
    from fitune.trainers.base import FituneTrainer

WriteRow = Callable[[dict[str, object]], None]
BAR_WIDTH = 16
WATCHED = ("reward", "kl")  # of what a method measures at a step, what stands beside the loss


class TrainerListener(TrainerCallback):
    """A callback that reads more than transformers hands it: the trainer itself, which binds it when it is made."""

    trainer: FituneTrainer

    def bind(self, trainer: FituneTrainer) -> None:
        """Called once by `FituneTrainer`, before the first event."""
        self.trainer = trainer


class RunLog(TrainerListener):
    """Writes one row a logged step and one an evaluation; what spans several steps survives a resume.

    A training row: step, kind "train", loss (mean over the steps since the row before), learning_rate, grad_norm,
    epoch, tokens (real tokens so far, padding left out), tokens_per_second, seconds (in steps, so far), memory_bytes,
    and what the method adds (the trainer's ``step_metrics``).
    An evaluation row: step, kind "eval", loss and whatever else was measured.
    """

    def __init__(self, write: WriteRow, memory_bytes: Callable[[], int]):
        self.write = write
        self.memory_bytes = memory_bytes
        self.began = 0.0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        nothing = {"losses": [], "tokens": 0, "seconds": 0.0, "new_tokens": 0, "new_s": 0.0}
        self.trainer.extra_state.setdefault("log", nothing)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        spent = time.perf_counter() - self.began
        log = self.trainer.extra_state["log"]
        log["losses"].append(self.trainer.step_loss)
        if self.trainer.step_metrics:
            log.setdefault("more", []).append(self.trainer.step_metrics)
        for total, part, value in (("tokens", "new_tokens", self.trainer.step_tokens), ("seconds", "new_s", spent)):
            log[total] += value
            log[part] += value
        control.should_log = control.should_log or state.global_step >= state.max_steps

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if not logs or "loss" not in logs or "learning_rate" not in logs:
            return
        log = self.trainer.extra_state["log"]
        grad_norm = logs.get("grad_norm")
        self.write(
            {
                "step": state.global_step,
                "kind": "train",
                "loss": math.fsum(log["losses"]) / max(len(log["losses"]), 1),
                "learning_rate": logs["learning_rate"],
                "grad_norm": grad_norm,
                "epoch": state.epoch,
                "tokens": log["tokens"],
                "tokens_per_second": round(log["new_tokens"] / max(log["new_s"], 1e-9), 1),
                "seconds": round(log["seconds"], 3),
                "memory_bytes": self.memory_bytes(),
                **_means(log.pop("more", [])),
            }
        )
        log.update(losses=[], new_tokens=0, new_s=0.0)
        # fp16 meets infinite gradients in normal operation: its scaler skips those steps.
        if grad_norm is not None and not math.isfinite(grad_norm) and not args.fp16:
            self.trainer.halt(f"the gradient's norm is {grad_norm}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        values = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        self.write({"step": state.global_step, "kind": "eval", **values})


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    """Mean of each number over the rows that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    held = {name: [row[name] for row in rows if name in row] for name in names}
    return {name: math.fsum(values) / len(values) for name, values in held.items()}


class BestKept(TrainerListener):
    """Saves a checkpoint at each new best, and stops when there has been none for ``patience`` evaluations."""

    def __init__(self, metric: str, higher_is_better: bool, patience: int | None):
        self.metric = metric
        self.higher_is_better = higher_is_better
        self.patience = patience

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if not self.trainer.is_in_train or metrics is None:
            return
        value, best = metrics[f"eval_{self.metric}"], state.best_metric
        better = best is None or (value > best if self.higher_is_better else value < best)
        waited = 0 if better else self.trainer.extra_state.get("evaluations_without_gain", 0) + 1
        self.trainer.extra_state["evaluations_without_gain"] = waited
        control.should_save = control.should_save or better
        if self.patience is not None and waited >= self.patience:
            log(
                f"stopping early at step {state.global_step}: {self.metric} has not improved on {best:.4g} "
                f"for {waited} evaluations (eval.patience)"
            )
            control.should_training_stop = control.should_save = True
            self.trainer.extra_state["stopped_early"] = True


class StopOnInterrupt(TrainerListener):
    """Ctrl-C, SIGTERM and SIGHUP end the run after the step in hand, with a checkpoint; a second one ends it at once.

    SIGUSR1 ends the training there as early stopping does: the run finishes with what it has learned.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._agreed: bool | None = None

    @property
    def asked(self) -> bool:
        """Whether the run ends without having finished."""
        return self.number not in (None, signal.SIGUSR1)

    @contextmanager
    def listening(self) -> Generator[None, None, None]:
        """While steps are taken."""
        with handled((signal.SIGINT, *ENDING), self._heard):
            yield

    @contextmanager
    def finishing(self) -> Generator[None, None, None]:
        """From the first to the last moment of a run, so that SIGUSR1 never does what it does by default: kill."""
        with handled((signal.SIGUSR1,), self._finish):
            yield

    def _finish(self, number: int) -> None:
        if self.number is None:
            self.number = number
        log("SIGUSR1: finishing this step, then saving what was learned")

    def _heard(self, number: int) -> None:
        if self.asked:
            raise_stopped(number)
        self.number = number
        name = "interrupted" if number == signal.SIGINT else signal.Signals(number).name
        again = "Ctrl-C again" if number == signal.SIGINT else "a second one"
        warn(f"{name}: finishing this step, then writing a checkpoint; {again} stops at once")

    @property
    def stops(self) -> bool:
        """Whether the run ends."""
        return self.number is not None if self._agreed is None else self._agreed

    def agree(self, numbers: Sequence[int | None]) -> None:
        """Stop behind this step when any of several ranks was asked before its end, so that all stop behind the same.

        Args:
            numbers: the signal that each rank has had.
        """
        self._agreed = any(number is not None for number in numbers)
        if self.number is None:
            self.number = next((number for number in numbers if number is not None), None)

    def _stop(self, control: TrainerControl) -> None:
        if self.stops:
            control.should_training_stop = control.should_save = True
            if self.number == signal.SIGUSR1:
                self.trainer.extra_state["stopped_early"] = True

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._stop(control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._stop(control)


class ProgressLine(TrainerListener):
    """A live bar on a terminal, elsewhere a line every ``quiet_seconds``: step, mean loss of the last steps (and reward and
    KL where there are), time left with the evaluations to come, tokens a second, epoch, learning rate."""

    def __init__(self, quiet_seconds: float = 10.0):
        self.quiet_seconds = quiet_seconds
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.said = 0.0
        self.recent: deque[tuple[float, int, dict[str, float]]] = deque(maxlen=20)
        self.began = 0.0
        self.evaluation_began: float | None = None
        self.evaluation_s = 0.0
        self.shown = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if stderr_console().is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=BAR_WIDTH),
                TextColumn("{task.fields[words]}"),
            )
            self.bar = Progress(*columns, console=stderr_console(), refresh_per_second=4)
            self.task = self.bar.add_task("train", total=state.max_steps, completed=state.global_step, words="")
            self.bar.start()
            self.shown.enter_context(progress_in(self.tell))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.began = time.perf_counter()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        watched = {name: self.trainer.step_metrics[name] for name in WATCHED if name in self.trainer.step_metrics}
        spent = time.perf_counter() - self.began
        self.recent.append((spent, self.trainer.step_tokens, {"loss": self.trainer.step_loss, **watched}))
        words = self.words(args, state, _rate_of(kwargs.get("optimizer")))
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step, words=words)
        elif time.monotonic() - self.said > self.quiet_seconds or state.global_step == state.max_steps:
            self.said = time.monotonic()
            log(words)

    def words(self, args: TrainingArguments, state: TrainerState, rate: float | None) -> str:
        """``step 40/411 · loss 1.234 · 3:20 left · 812 tokens/s · epoch 0.10 · lr 0.0002``, as much as the line holds.

        Loss, reward and KL are means over the last steps.
        """
        step, steps = state.global_step, state.max_steps
        seconds = sum(spent for spent, _, _ in self.recent)
        speed = sum(tokens for _, tokens, _ in self.recent) / max(seconds, 1e-9)
        left = (steps - step) * seconds / len(self.recent)
        if args.eval_strategy == "steps" and args.eval_steps:
            left += self.evaluation_s * (math.ceil(steps / args.eval_steps) - step // args.eval_steps)
        means = _means([values for _, _, values in self.recent])
        parts = [
            f"step {step}/{steps}",
            *(f"{'KL' if name == 'kl' else name} {value:.4g}" for name, value in means.items()),
            f"{_clock(round(left))} left",
            f"{speed:,.0f} tokens/s",
            f"epoch {state.epoch:.2f}",
            *([] if rate is None else [f"lr {rate:.2g}"]),
        ]
        return _fitting(parts, stderr_console().width - BAR_WIDTH - len("train  ") if self.bar is not None else None)

    def tell(self, label: str, done: int, total: int) -> None:
        """Progress of an evaluation, in the bar of the training."""
        if done == 0:
            self.evaluation_began = time.perf_counter()
        if self.bar is not None:
            self.bar.update(self.task, words=f"{label} {done} of {total}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        if self.evaluation_began is not None:
            self.evaluation_s, self.evaluation_began = time.perf_counter() - self.evaluation_began, None
        found = " · ".join(f"{name.removeprefix('eval_')} {value:.4g}" for name, value in (metrics or {}).items())
        log(f"evaluation at step {state.global_step}: {found}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, also after an error."""
        self.shown.close()
        if self.bar is not None:
            self.bar.stop()
            self.bar = None


def _rate_of(optimizer: object) -> float | None:
    """The learning rate that an optimizer stands at, as transformers hands it to a callback."""
    groups = cast("list[dict[str, float]]", getattr(optimizer, "param_groups", None) or [{}])
    return groups[0].get("lr")


def _clock(seconds: int) -> str:
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02d}:{seconds % 60:02d}" if hours else f"{minutes}:{seconds % 60:02d}"


def _fitting(parts: list[str], width: int | None) -> str:
    """The first parts that go into so many characters; None bounds nothing."""
    while width is not None and len(parts) > 1 and len(" · ".join(parts)) > width:
        parts = parts[:-1]
    return " · ".join(parts)
