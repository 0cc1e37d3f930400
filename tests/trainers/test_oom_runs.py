"""Whole runs of every method on a simulated card that is too small: none ends, and each learns what it would have learnt.

The card raises as CUDA's allocator does, in the forward pass, in the backward pass when gradients of the upper layers
are already there, or in the middle of a generation. The reference is the same run on a card without a limit.

Smaller passes add the same numbers in another order, which moves a sum by some 1e-7 of its largest term (fp32 has 24
bits): losses agree to 1e-6; what else is measured, such as rewards and norms of gradients, to 1e-5. Adam divides by the
gradient's own size, so a weight whose gradient is nearly nothing may go 4e-5 astray (measured) at a learning rate of
1e-2. What a single part has computed is equal to the bit: see test_oom_recovery.py.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import fitune
from fitune.errors import DoesNotFit
from fitune.methods.registry import METHODS as REGISTERED
from fitune.runs import manifest as manifests
from fitune.runs.run_folder import read_rows

TIMES = ("tokens_per_second", "seconds", "memory_bytes")
RL = {"rewards": ["length:2", "0.5*exact"], "max_new_tokens": 6, "num_generations": 4, "truncated_reward": None}
COMMON = {"train__max_steps": 3, "train__batch_size": 4, "run__log_steps": 1, "eval__max_new_tokens": 6}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"method": "sft"},
    "sft-padded": {"method": "sft", "data__packing": "off", "train__micro_batch_size": 2},
    "lm": {"method": "lm"},
    "reward": {"method": "reward", "eval__samples": 0},
    "dpo": {"method": "dpo"},
    "dpo-live-padded": {"method": "dpo", "dpo": {"reference": "live"}, "data__packing": "off"},
    "orpo": {"method": "orpo"},
    "orpo-padded": {"method": "orpo", "orpo": {"sft_on": "all"}, "data__packing": "off"},
    "simpo": {"method": "simpo"},
    "kto": {"method": "kto"},
    "kto-padded": {"method": "kto", "data__packing": "off"},
    "grpo": {"method": "grpo", "rl": {**RL, "num_iterations": 1}},
    "grpo-updates": {
        "method": "grpo",
        "rl": {**RL, "num_iterations": 2, "minibatches": 2},
        "train__micro_batch_size": 2,
    },
    "ppo": {"method": "ppo", "rl": {**RL, "num_iterations": 2}},
}
SAMPLES = [name for name in METHODS if name not in ("lm", "reward")]
# Every method beside the slow tests; those with a loss, a reference or sampling of their own each time.
EACH = [name if name in ("sft", "dpo", "grpo") else pytest.param(name, marks=pytest.mark.slow) for name in METHODS]


class Card:
    """Room for ``positions`` of a forward pass, or for ``rows`` that are generated at once; failures are counted.

    Args:
        late: training passes fail in their backward pass.
        trains: only passes with gradients fail (True), or only those without (False).
        once: the number of the training pass that fails, whatever its size; it alone does.
    """

    def __init__(
        self,
        positions: float = math.inf,
        rows: float = math.inf,
        late: bool = False,
        trains: bool | None = None,
        once: int | None = None,
    ):
        self.positions, self.rows, self.late, self.trains, self.once = positions, rows, late, trains, once
        self.training, self.scored, self.generated = [0], [0], [0]
        self.too_large = False
        self.failures = 0

    @contextmanager
    def in_use(self) -> Iterator[None]:
        handle = register_module_forward_hook(self._after)
        try:
            yield
        finally:
            handle.remove()

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        if type(module).__name__ == "GPTNeoXRotaryEmbedding":  # once a pass, below the first layer
            self._begins(*args[0].shape[:2])
        elif self.too_large and self.late and type(module).__name__ == "GPTNeoXLayer":
            hidden = output[0] if isinstance(output, tuple) else output
            if hidden.requires_grad:
                hidden.register_hook(self._fail)

    def _begins(self, rows: int, width: int) -> None:
        if width == 1:
            self.generated.append(rows)
            if rows > self.rows and self.generated[-3:] == [rows] * 3:  # the third of the new tokens
                self._fail()
            return
        trains = torch.is_grad_enabled()
        (self.training if trains else self.scored).append(rows * width)
        self.too_large = rows * width > self.positions and self.trains in (None, trains)
        if self.once is not None:
            self.too_large = trains and len(self.training) == self.once + 1
        if self.too_large and not (self.late and trains):
            self._fail()

    def _fail(self, grad: torch.Tensor | None = None) -> None:
        self.failures += 1
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


class Outcome:
    """What a run has left: its metrics without the clock, its answers, its adapter."""

    def __init__(self, folder: Path, card: Card):
        self.card, self.folder = card, folder
        rows = read_rows(folder / "metrics.jsonl")
        self.metrics = [{name: value for name, value in row.items() if name not in TIMES} for row in rows]
        samples = folder / "samples.jsonl"
        self.samples = read_rows(samples) if samples.exists() else []
        self.adapter = load_file(folder / "adapter" / "adapter_model.safetensors")
        self.step_downs = manifests.read(folder / "manifest.json")["memory"].get("step_downs", [])


def assert_same(found: Outcome, wanted: Outcome) -> None:
    assert [row["answer"] for row in found.samples] == [row["answer"] for row in wanted.samples]
    assert len(found.metrics) == len(wanted.metrics)
    for row, other in zip(found.metrics, wanted.metrics, strict=True):
        assert row.keys() == other.keys() and row["kind"] == other["kind"]
        for metric, value in other.items():
            if metric != "kind":
                near = 1e-6 if metric == "loss" else 1e-5
                assert row[metric] == pytest.approx(value, rel=near, abs=near), (row["step"], metric)
    for name, value in wanted.adapter.items():
        torch.testing.assert_close(found.adapter[name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def data_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain text, pairs, and judged answers."""
    folder = tmp_path_factory.mktemp("oom")
    words = ["cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee"]
    texts = [{"text": f"the {word} meets the {other}"} for word in words for other in words[:2]]
    pairs = [{"prompt": f"say {word}", "chosen": word, "rejected": word[::-1] + "x"} for word in words * 2]
    judged = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs[:10]
        for side in ("chosen", "rejected")
    ]
    files = {"text": folder / "texts.jsonl", "pairs": folder / "pairs.jsonl", "judged": folder / "judged.jsonl"}
    for path, rows in zip(files.values(), (texts, pairs, judged), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


@pytest.fixture(scope="module")
def free_runs() -> dict[str, Outcome]:
    """Runs on a card without a limit, by their name in METHODS."""
    return {}


@pytest.fixture
def run(settings_of: Any, data_files: dict[str, Path], free_runs: dict[str, Outcome]) -> Callable[..., Outcome]:
    """A run of METHODS on a card; without one, on a card without a limit, once for all tests."""

    def make(name: str, card: Card | None = None, **more: Any) -> Outcome:
        if card is None and not more and name in free_runs:
            return free_runs[name]
        changed = {**COMMON, **METHODS[name], **more}
        kind = REGISTERED[changed["method"]].reads
        if kind in data_files:
            changed["data__train"] = str(data_files[kind])
        used = card or Card()
        with used.in_use():
            result = fitune.train(
                settings_of(**{"run__name": f"{name}-{'free' if card is None else 'tight'}", **changed})
            )
        assert result.status == "finished"
        outcome = Outcome(result.folder, used)
        if card is None and not more:
            free_runs[name] = outcome
        return outcome

    return make


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("late", [False, True], ids=["forward", "backward"])
def test_passes_that_are_too_large(name: str, late: bool, run: Any) -> None:
    free = run(name)
    tight = run(name, Card(positions=max(free.card.training) * 2 // 3, late=late))
    assert tight.card.failures > 0
    assert any(event["at"] == "at step 1" for event in tight.step_downs)
    assert_same(tight, free)


@pytest.mark.parametrize("name", SAMPLES)
def test_too_many_answers_at_once(name: str, run: Any) -> None:
    free = run(name)
    tight = run(name, Card(rows=max(max(free.card.generated) // 3, 1)))
    assert tight.card.failures > 0
    assert max(tight.card.generated[-6:]) <= tight.card.rows
    assert_same(tight, free)


@pytest.mark.parametrize("name", EACH)
def test_passes_without_gradients(name: str, run: Any) -> None:
    """Evaluation, the reference measured before step one, answers scored before they are learnt from."""
    free = run(name)
    tight = run(name, Card(positions=max(free.card.scored) - 1, trains=False))
    assert tight.card.failures > 0
    assert_same(tight, free)


@pytest.mark.parametrize(("name", "number"), [("sft-padded", 4), ("grpo-updates", 3), ("ppo", 4)])
def test_a_failure_in_the_middle_leaves_what_stood_before_it(name: str, number: int, run: Any) -> None:
    """The second micro-batch of step 2; the third update of step 1; the second update of step 2."""
    tight = run(name, Card(late=True, once=number))
    assert tight.card.failures == 1
    (event,) = tight.step_downs
    assert event["at"] == ("at step 1" if name == "grpo-updates" else "at step 2")
    assert_same(tight, run(name))


def test_a_reward_model_that_scores_too_many_answers_at_once(run: Any) -> None:
    judge = run("reward", run__name="judge")
    rewards = {"rl": {**RL, "rewards": [f"run:{judge.folder.name}"], "num_iterations": 1, "kl_coef": 0.0}}
    free = run("grpo", run__name="free", data__packing="off", **rewards)
    tight = run(
        "grpo", Card(positions=max(free.card.scored) - 1, trains=False), run__name="tight", data__packing="off",
        **rewards,
    )  # fmt: skip
    assert tight.card.failures > 0
    assert_same(tight, free)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("trains", [True, False])
def test_when_nothing_is_left_the_error_says_what_to_do(name: str, trains: bool, run: Any) -> None:
    says = (
        r"with one (row|pair|answer) at a time.*, quantize the base \(model.quantization nf4\), or use a smaller model"
    )
    says = says.replace("time", "time and gradient checkpointing") if trains else says
    # Before any pass log-probabilities of answers are checked on the shortest row, which has to fit.
    checks = REGISTERED[METHODS[name]["method"]].section in ("dpo", "orpo", "simpo", "kto") and not trains
    positions = min(run(name).card.scored[1:]) if checks else 1
    with pytest.raises(DoesNotFit, match=says):
        run(name, Card(positions=positions, trains=trains))
