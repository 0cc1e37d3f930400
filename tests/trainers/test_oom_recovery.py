"""Out of memory, simulated: a pass that is too large raises torch.OutOfMemoryError, as CUDA's allocator would.

The reference is the run that never ran out of memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from fitune.errors import DoesNotFit
from fitune.evaluation.generation import Sampling
from fitune.methods.grpo.trainer import GrpoOptions, GrpoTrainer
from fitune.trainers.arguments import schedule_of, training_arguments
from fitune.trainers.base import FituneTrainer
from fitune.trainers.callbacks import ProgressLine, RunLog
from fitune.trainers.oom_recovery import PassSize, is_out_of_memory
from fitune.trainers.packed import PackedTrainer
from fitune.trainers.packing_support import choose_packing
from fitune.trainers.worst_case_batch import Batches, largest_rows


class Memory:
    """Room for so many positions of a forward pass; without recomputing activations only for half as many."""

    def __init__(self, model: Any, positions: int | None, half_without_checkpointing: bool = False, late: bool = False):
        self.positions, self.sizes, self.late, self.model = positions, [], late, model
        self.inner = model.get_base_model()
        self.half = half_without_checkpointing
        self.inner.model.embed_tokens.register_forward_hook(self.allocate)
        self.inner.model.layers[0].register_forward_hook(self.fail_later)
        self.too_large = False
        self.failures = 0

    def allocate(self, module: Any, args: tuple, output: torch.Tensor) -> torch.Tensor:
        size = args[0].numel()
        if torch.is_grad_enabled():
            self.sizes.append(size)
        room = self.positions
        if room is not None and self.half and not self.inner.is_activation_checkpointing:
            room //= 2
        self.too_large = room is not None and size > room
        if self.too_large:
            self.failures += 1
            if not (self.late and torch.is_grad_enabled()):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return output

    def fail_later(self, module: Any, args: tuple, output: Any) -> None:
        """In the backward pass, when the gradients of the layers above are already there."""
        hidden = output[0] if isinstance(output, tuple) else output
        if self.too_large and hidden.requires_grad:
            hidden.register_hook(self.fail)

    def fail(self, grad: torch.Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def make(folder: Any, tiny: Any, packed: bool = False, trial: bool = False, **changed: Any) -> Any:
    rows = tiny.make_rows(16, longest=12)
    batch, micro = 8, changed.pop("micro_batch_size", 4)
    schedule = schedule_of(len(rows), batch, micro, 1.0, None, 0.1, None, None)
    values = {
        "epochs": 1.0, "max_steps": None, "learning_rate": 1e-2, "lr_scheduler": "cosine", "optimizer": "adamw",
        "weight_decay": 0.0, "max_grad_norm": 1.0, "gradient_checkpointing": False, "seed": 1,
        "mixed_precision": "fp32", "device": "cpu", "evaluates": changed.get("evaluates", False),
        "best_metric": "loss", "log_steps": 1, "report_to": [], "run_name": "test", "overrides": {},
    }  # fmt: skip
    arguments = training_arguments(folder, schedule, **values)
    model = tiny.llama(dropout=changed.get("dropout", 0.0))
    memory = Memory(model, None, changed.get("half", False), changed.get("late", False))
    logged: list[dict[str, Any]] = []
    callbacks: list[Any] = [RunLog(logged.append, lambda: 0), ProgressLine(quiet_seconds=1e9)]
    kind: Any = FituneTrainer
    if packed:
        packing = choose_packing(model, rows, "tree", micro)
        assert packing.mode == "tree"
        kind = partial(PackedTrainer, packing=packing)
    events: list[dict[str, Any]] = []
    batches = Batches(batch, micro, 1, 1.0, "tree" if packed else "off")
    trainer = kind(
        model,
        arguments,
        rows,
        rows[:4] if changed.get("evaluates") else [],
        tiny.collate,
        keep_checkpoints=2,
        callbacks=callbacks,
        on_step_down=events.append,
        largest_rows=partial(largest_rows, rows, batches) if trial else None,
    )
    trainer.logged, trainer.memory, trainer.events = logged, memory, events
    memory.sizes.clear()
    return trainer


def weights(trainer: Any) -> torch.Tensor:
    return torch.cat([value.detach().flatten() for _, value in trainer.trained_parameters()])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("trial", [False, True])
def test_a_run_that_runs_out_of_memory_is_the_run_that_did_not(tmp_path, tiny, packed, late, trial, capsys):
    free = make(tmp_path / "free", tiny, packed)
    free.train()
    tight = make(tmp_path / "tight", tiny, packed, trial, late=late)
    tight.memory.positions = max(free.memory.sizes) // 2 + 1
    tight.train()
    assert tight.memory.failures > 0 and tight.events
    assert tiny.losses(tight) == pytest.approx(tiny.losses(free), rel=1e-5)
    torch.testing.assert_close(weights(tight), weights(free), rtol=1e-4, atol=1e-6)
    assert max(tight.memory.sizes[-4:]) <= tight.memory.positions
    assert tight.state.global_step == free.state.global_step == 2
    said = capsys.readouterr().err
    assert "out of memory " + ("in the trial before step 1" if trial else "at step 1") in said
    if trial:
        assert all(event["at"] == "in the trial before step 1" for event in tight.events)


@pytest.mark.parametrize("packed", [False, True])
def test_the_trial_leaves_no_trace_in_the_training(tmp_path, tiny, packed):
    plain, tried = make(tmp_path / "a", tiny, packed), make(tmp_path / "b", tiny, packed, trial=True)
    torch.manual_seed(5)
    plain.train()
    torch.manual_seed(5)
    tried.train()
    assert tiny.losses(plain) == tiny.losses(tried)
    assert torch.equal(weights(plain), weights(tried))
    assert len(tried.memory.sizes) == len(plain.memory.sizes) + 1
    assert tried.memory.sizes[0] == max(plain.memory.sizes)  # the longest real pass, first


def test_a_single_row_that_is_too_long_switches_checkpointing_on(tmp_path, tiny):
    free = make(tmp_path / "free", tiny)
    free.train()
    tight = make(tmp_path / "tight", tiny, half=True)
    tight.memory.positions = 20  # 10 for a row that is kept, and the longest has more
    tight.train()
    assert tight.recovery.checkpoints_activations and tight.events[-1]["to"].startswith("gradient checkpointing")
    assert tiny.losses(tight) == pytest.approx(tiny.losses(free), rel=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_when_nothing_is_left_the_error_says_what_to_do(tmp_path, tiny, packed):
    tight = make(tmp_path / "tight", tiny, packed)
    tight.memory.positions = 3
    with pytest.raises(DoesNotFit, match="Drop the longest rows"):
        tight.train()


@pytest.mark.parametrize("packed", [False, True])
def test_the_evaluation_goes_on_in_smaller_batches(tmp_path, tiny, packed):
    trainer = make(tmp_path / "run", tiny, packed, evaluates=True)
    wanted = trainer.evaluate()["eval_loss"]
    trainer.memory.positions = 13
    assert trainer.evaluate()["eval_loss"] == pytest.approx(wanted, rel=1e-5)
    assert trainer.memory.failures > 0


def test_other_errors_are_not_taken_for_it(tmp_path, tiny):
    assert is_out_of_memory(
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
    )
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    trainer = make(tmp_path / "run", tiny)
    trainer.model.get_base_model().model.embed_tokens.register_forward_hook(lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.train()


SAID = {
    "torch": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
    "driver": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "bitsandbytes": RuntimeError("Error out of memory at line 380 in file /src/csrc/pythonInterface.cpp"),
    "cpu": RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
}


def fail_once(monkeypatch: pytest.MonkeyPatch, trainer: Any, place: str, number: int, error: Exception) -> list[int]:
    """The ``number``-th loss or backward pass of a trainer fails; gives the list of those that were begun."""
    owner, name = (trainer, "compute_loss") if place == "forward" else (trainer.accelerator, "backward")
    real, begun = getattr(owner, name), [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        begun[0] += 1
        done = real(*args, **kwargs)
        if begun[0] == number:
            raise error
        return done

    monkeypatch.setattr(owner, name, failing)
    return begun


@pytest.mark.parametrize("said", SAID)
@pytest.mark.parametrize("place", ["forward", "backward"])
def test_a_step_begun_again_is_the_step_to_the_bit(tmp_path, tiny, monkeypatch, said, place):
    """Of single rows there is nothing to cut: checkpointing computes the same numbers in the same order, and dropout
    draws what it drew."""
    runs = [make(tmp_path / name, tiny, micro_batch_size=1, dropout=0.2) for name in ("free", "tight")]
    begun = fail_once(monkeypatch, runs[1], place, 8 + 5, SAID[said])  # the fifth of eight micro-batches of step 2
    for run in runs:
        torch.manual_seed(7)
        run.train()
    free, tight = runs
    assert begun == [8 + 5 + 8]
    assert [event["at"] for event in tight.events] == ["at step 2"]
    assert tiny.losses(tight) == tiny.losses(free)
    assert torch.equal(weights(tight), weights(free))


@pytest.mark.parametrize("sampling", [Sampling(6, 1.0), Sampling(6, 0.7, 0.9), Sampling(6)])
def test_answers_do_not_depend_on_how_many_are_sampled_at_once(tmp_path, tiny, sampling):
    """Fifteen answers in batches of six, some of which end early; cut batches draw what whole ones draw."""
    trainer = tiny.bandit(
        tmp_path, GrpoTrainer, GrpoOptions(), sampling=sampling, num_generations=5, prompts=3, generation_batch_size=6
    )
    assert len(trainer.train_dataset.rows) == 3
    with torch.no_grad():  # the end token is as likely as the others of the ten likeliest
        head = trainer.model.get_base_model().lm_head.weight
        head[2] = head[tiny.first_token(trainer.model).topk(3).indices[-1]]
    whole = trainer.sample(trainer.train_dataset.rows)
    if sampling.temperature:
        assert len(set(whole.lengths)) > 1 and len({row.input_ids for row in whole.rows}) > 5
    recovery = trainer.sampling_recovery
    for most in range(1, 6):
        recovery.size = PassSize(most, "answer")
        assert trainer.sample(trainer.train_dataset.rows).rows == whole.rows
