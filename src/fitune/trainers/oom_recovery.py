"""Out of memory does not end a run: what ran out is begun again, in smaller forward passes.

In: work as a function of its batch. Out: what it returns, however often it had to be begun.
Knows nothing of settings, of what a batch holds, or of how a pass is computed.

A training step that ran out of memory is begun again: its gradients are dropped, random numbers put back, and all of its
micro-batches taken anew. Losses are divided by what the whole step trains, so smaller passes add up to the same sum.
When a single row, pair or answer is still too much, gradient checkpointing is switched on. Only when that does not help
either does the run end, with its checkpoints and a sentence.

Of several ranks the one that ran out begins its part again, while the others wait for its gradients.

A trainer holds one `OomRecovery` for its training passes and another for its evaluation; sampling and scoring have
their own, since each is limited by a memory of its own.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fitune.console import log, warn
from fitune.distributed import together
from fitune.errors import DoesNotFit
from fitune.models.base_model import base_model_of
from fitune.models.hardware import gpus_in_use
from fitune.models.quantization.nf4 import NF4
from fitune.ops.optimizers import of_optim
from fitune.ops.optimizers.adamw_8bit import ADAMW_8BIT

if TYPE_CHECKING:
    from fitune.trainers.base import FituneTrainer
    from fitune.trainers.sampler import Numbered

B = TypeVar("B")
T = TypeVar("T")
StepDown = Callable[[dict[str, str]], None]
RandomState = tuple[Tensor, list[Tensor]]

# What libraries raise in place of torch.OutOfMemoryError: torch's allocator for the CPU, cuBLAS, bitsandbytes.
OTHER_WORDS = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "out of memory at line",
)


@dataclass(frozen=True)
class PassSize:
    """The most that one forward pass takes."""

    most: int
    part: str = "row"
    """What a pass is never smaller than: a row, pair or answer."""
    in_tokens: bool = False
    """Whether ``most`` counts computed tokens; else it counts parts."""

    def __str__(self) -> str:
        unit = "token" if self.in_tokens else self.part
        return f"{self.most:,} {unit}{'' if self.most == 1 else 's'}"


class OomRecovery:
    """Work that is begun again when memory runs out, with half of what was too much in a pass.

    Whoever does the work cuts it by ``size`` and announces each pass by `begin_pass`, or takes both from `slices`.

    Args:
        size: what a pass may take at first.
        where: names the place for messages, for example "at step 3".
        advice: what the user may do when a single part is too much, as the beginning of a sentence.
        model: where passes keep activations for a backward pass, the model that may recompute them as the last resort.
        checkpointing: it does so from the start.
        begin_again: undoes what a failed attempt has left behind (gradients).
        gives_up: nothing is begun again: other ranks are in the midst of the same layer.
        on_step_down: told of each step down: at, to.
    """

    def __init__(
        self,
        size: PassSize,
        *,
        where: Callable[[], str],
        advice: str = "Drop the longest rows (data.max_length with data.too_long drop)",
        model: nn.Module | None = None,
        checkpointing: bool = False,
        begin_again: Callable[[], None] | None = None,
        gives_up: bool = False,
        on_step_down: StepDown | None = None,
    ):
        self.size = size
        self.checkpoints_activations = checkpointing
        self.parts, self.tokens = 0, 0
        self._where, self._advice, self._model = where, advice, model
        self._begin_again, self._on_step_down = begin_again, on_step_down
        self._notes: list[str] = []
        self._gives_up = gives_up
        self._random_state = random_state()

    def begin_pass(self, parts: int, tokens: int = 0) -> None:
        """Announce the next forward pass.

        Args:
            parts: rows, pairs or answers in it, which other passes could take.
            tokens: that it computes, padding included; 0 where nobody has counted them.
        """
        self.parts, self.tokens = parts, tokens

    def slices(self, count: int, tokens_each: int = 0) -> Iterator[slice]:
        """``count`` parts in passes of the present size, which counts parts; each pass is announced when it is asked for."""
        for start in range(0, count, self.size.most):
            stop = min(start + self.size.most, count)
            self.begin_pass(stop - start, (stop - start) * tokens_each)
            yield slice(start, stop)

    def run(
        self, work: Callable[[B], T], batch: B, earlier: Sequence[B] = (), where: Callable[[], str] | None = None
    ) -> T:
        """``work(batch)``, begun again in smaller passes as often as memory runs out.

        Args:
            earlier: the step's batches before this one. What they left behind is dropped with a failed attempt, so that
                they are taken anew as well.
            where: as in the constructor, for this call.

        Raises:
            DoesNotFit: there is nothing left to give up.
        """
        if not earlier:
            self._random_state = random_state()
        batches = [batch]
        while True:
            try:
                return [work(one) for one in batches][-1]
            except RuntimeError as error:  # torch.OutOfMemoryError is one
                if not is_out_of_memory(error):
                    raise
                if self._gives_up:
                    raise DoesNotFit(self._way_out((where or self._where)())) from error
            # Out of the handler: its traceback has let go of the activations.
            if self._begin_again is not None:
                self._begin_again()
            free_memory()
            self._step_down((where or self._where)())
            put_back(self._random_state)
            batches = [*earlier, batch]

    def _step_down(self, where: str) -> None:
        """Take less at once from now on."""
        if self.parts > 1:
            too_much = self.tokens if self.size.in_tokens else self.parts
            self.size = replace(self.size, most=-(-too_much // 2))
            what = f"at most {self.size} in a forward pass"
        elif self._can_checkpoint():
            self._checkpoint_activations()
            what = "gradient checkpointing, about a third more time"
        else:
            raise DoesNotFit(self._way_out(where))
        said = f"out of memory {where}: from now on {what}; the results stay the same"
        warn(said)
        self._notes.append(said)
        if self._on_step_down is not None:
            self._on_step_down({"at": where, "to": what})

    def take_notes(self) -> tuple[str, ...]:
        """What was given up since the last call; rank 0 tells it of the others."""
        notes, self._notes = tuple(self._notes), []
        return notes

    def _can_checkpoint(self) -> bool:
        if self._model is None or self.checkpoints_activations:
            return False
        return getattr(base_model_of(self._model), "supports_gradient_checkpointing", True)

    def _checkpoint_activations(self) -> None:
        assert self._model is not None
        base_model_of(self._model).activation_checkpointing_enable({"use_reentrant": False})
        self.checkpoints_activations = True

    def _way_out(self, where: str) -> str:
        part = self.size.part
        and_so = " and gradient checkpointing" if self.checkpoints_activations else ""
        length = f": this {part} takes {self.tokens:,} tokens" if self.tokens else ""
        return (
            f"out of memory {where}, with one {part} at a time{and_so}{length}. {self._advice}, quantize the base "
            f"(model.quantization {NF4.name}), or use a smaller model; `fitune plan` tells what would fit"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OTHER_WORDS)


def free_memory() -> None:
    """Let go of what a failed pass held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def random_state() -> RandomState:
    """State of torch's own random numbers, of the CPU and of this process's GPU."""
    return torch.get_rng_state(), [torch.cuda.get_rng_state(gpu) for gpu in gpus_in_use()]


def put_back(state: RandomState) -> None:
    """Draw from here on what was drawn after ``state`` was taken."""
    torch.set_rng_state(state[0])
    for gpu, here in zip(gpus_in_use(), state[1], strict=True):
        torch.cuda.set_rng_state(here, gpu)


# ---- before the first step


class TriedFirst(TrainerCallback):
    """The largest pass of the run, forward and backward, before its first step.

    Args:
        trainer: whose rows these are.
        rows: makes the rows (or pairs) of that pass.
    """

    def __init__(self, trainer: FituneTrainer, rows: Callable[[], Sequence[Numbered]]):
        self.trainer, self.rows = trainer, rows

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        together.everywhere("the largest pass is tried", lambda: try_first(self.trainer, self.rows()))


def try_first(trainer: FituneTrainer, rows: Sequence[Numbered]) -> None:
    """Forward and backward of ``rows``, beside as much memory as the optimizer's states will take.

    Gradients are dropped, random numbers put back: the training that follows is the one without it.
    """
    noted = ("last_row_numbers", "step_batches", "step_loss", "step_metrics", "step_tokens")
    before = {name: getattr(trainer, name) for name in noted}
    with torch.random.fork_rng(devices=gpus_in_use()), _states_held(trainer):
        batches, items = trainer.get_batch_samples(iter([trainer.train_collator(rows)]), 1, trainer.args.device)
        trainer.take_step(cast(nn.Module, trainer.model_wrapped), batches, items, lambda: "in the trial before step 1")
    trainer.drop_gradients()
    vars(trainer).update(before)
    free_memory()
    recovery = trainer.recovery
    log(
        f"tried before step 1: the largest pass of the run ({recovery.parts} × {recovery.size.part}, {recovery.tokens:,} tokens)"
    )


@contextmanager
def _states_held(trainer: FituneTrainer) -> Generator[None]:
    """Memory that the first optimizer step will take for good, taken meanwhile; what is paged makes room by itself."""
    trained = [value for _, value in trainer.trained_parameters()]
    optimizer = of_optim(str(getattr(trainer.args.optim, "value", trainer.args.optim)))
    count = sum(optimizer.states_of(trained).held) if optimizer is not None else 0
    held = None
    if not cast(torch.optim.Optimizer, trainer.optimizer).state:  # a resumed run has them already
        try:
            held = torch.empty(count, dtype=torch.uint8, device=trainer.args.device)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            raise DoesNotFit(
                f"the optimizer's states take {count / 2**30:.2f} GiB for {sum(value.numel() for value in trained):,} "
                f"trained values, which are not there; use train.optimizer {ADAMW_8BIT.name}, or train.tuning lora"
            ) from error
    yield
    del held
