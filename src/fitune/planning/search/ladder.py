"""The fit ladder: what may be given up so that a run fits, in the order of its price, and how it is reported.

In: the plans of the steps that climb.py chose. Out: frozen objects and lines of text.
Knows nothing of settings objects, cards or traces. Imports no torch. Optimizers and quantizations bring their own rungs.

What is given up has an order. Smaller micro-batches, gradient checkpointing, tiles and layer inputs on the host cost time
alone, so they come first; an 8-bit Adam is counted as 5 % of the time, so that it is not taken for nothing. A quantized
base, LoRA instead of full fine-tuning and shorter rows change what is learnt: each is a level of its own, and no level is
left while anything on it fits. Within a level the fastest that fits is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from fitune.models.quantization import QUANTIZATIONS
from fitune.ops.optimizers import OPTIMIZERS
from fitune.planning.predict import Plan
from fitune.planning.report.plan_report import seconds
from fitune.sizes import size_in

Value = bool | int | str | None
Changes = dict[str, Value]
PlanOf = Callable[[Changes], Plan]

MICRO, CHECKPOINTING, OPTIMIZER = "train.micro_batch_size", "train.gradient_checkpointing", "train.optimizer"
TILES, OFFLOADING = "train.tiled_mlp", "train.activation_offloading"
TUNING, QUANTIZATION, LENGTH = "train.tuning", "model.quantization", "data.max_length"
# In the order of their price.
KEYS = (MICRO, CHECKPOINTING, TILES, OFFLOADING, OPTIMIZER, TUNING, QUANTIZATION, LENGTH)
EIGHT_BIT_HANDICAP = 1.05

SAME = "the result is the same"
# (setting, value) → what it is called, what it costs in quality and who says so; `price_of` knows the others.
PRICES: dict[tuple[str, Value], tuple[str, str]] = {
    (CHECKPOINTING, True): ("gradient checkpointing", SAME),
    (TILES, True): ("feed-forward in tiles", SAME),
    (OFFLOADING, True): ("layer inputs in the host's memory", SAME),
    (TUNING, "lora"): (
        "LoRA instead of full fine-tuning",
        "behaviour is learnt as well, large amounts of new knowledge less (Biderman et al. 2024, arXiv 2405.09673)",
    ),
}


def price_of(key: str, value: Value) -> tuple[str, str]:
    """What a concession is called, and what it costs in quality, for those whose price does not depend on the rows."""
    if key == OPTIMIZER:
        return OPTIMIZERS[str(value)].rung
    if key == QUANTIZATION:
        rung = QUANTIZATIONS[str(value)].rung
        assert rung is not None
        return rung
    return PRICES[key, value]


@dataclass(frozen=True)
class Start:
    """What the run would be without a ladder."""

    values: Mapping[str, Value]
    """Each of `KEYS` → its value as asked; train.micro_batch_size is a number here, data.max_length that of the rows."""
    batch_rows: int
    """Rows of an optimizer step, which never changes."""
    fixed: frozenset[str] = frozenset()
    """Those of `KEYS` that stay as they are."""
    kept_share: Callable[[int], float] = lambda _: 1.0
    """data.max_length → share of the rows that are left."""
    lengths: tuple[int, ...] = ()
    """Shorter values of data.max_length, longest first."""


@dataclass(frozen=True)
class Step:
    """One step of the ladder: a concession on top of those before it."""

    key: str
    value: Value
    name: str
    quality: str
    plan: Plan


@dataclass(frozen=True)
class Ladder:
    """The way from what was asked to what is trained."""

    asked: Plan
    changes: Changes
    """Settings of the chosen configuration that differ from what was asked."""
    steps: tuple[Step, ...]
    """In the order of their price; the last one's plan is the chosen configuration's."""
    tried: int
    """Configurations that were planned."""
    notes: tuple[str, ...] = field(default=())

    @property
    def plan(self) -> Plan:
        """The chosen configuration's."""
        return self.steps[-1].plan if self.steps else self.asked

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON and the manifest."""
        rows: list[dict[str, object]] = []
        before = self.asked
        for step in self.steps:
            rows.append(
                {
                    "setting": step.key,
                    "value": step.value,
                    "name": step.name,
                    "quality": step.quality,
                    "saves_bytes": before.smi_peak_bytes - step.plan.smi_peak_bytes,
                    "time_factor": time_factor(before, step.plan),
                    "smi_peak_bytes": step.plan.smi_peak_bytes,
                    "fits": step.plan.fits,
                }
            )
            before = step.plan
        return {
            "asked_smi_peak_bytes": self.asked.smi_peak_bytes,
            "asked_fits": self.asked.fits,
            "changes": dict(self.changes),
            "steps": rows,
            "configurations_planned": self.tried,
        }


def time_factor(before: Plan, after: Plan) -> float | None:
    """Time of a step over the time before; None when one is not known."""
    if not before.seconds_per_step or after.seconds_per_step is None:
        return None
    return after.seconds_per_step / before.seconds_per_step


def format_ladder(ladder: Ladder, card: str, usable_bytes: int, margin: float) -> list[str]:
    """The ladder line by line.

    Args:
        card: what the memory belongs to, in words.
        usable_bytes: all of it; the margin is not taken off.
    """
    whole = max(usable_bytes, ladder.asked.smi_peak_bytes)
    limit = size_in(usable_bytes * (1 - margin), whole)
    room = f"{limit} ({size_in(usable_bytes, whole)} of {card} less a margin of {margin:.0%})"
    needs = size_in(ladder.asked.smi_peak_bytes, whole)
    if not ladder.steps:
        return [f"it fits as asked: {needs} of {room}{_about(ladder.plan)}"]
    lines, before = [f"as asked it needs {needs}, and there is {room}"], ladder.asked
    for step in ladder.steps:
        lines.append(f"{step.name}: {_difference(before, step.plan, whole)}; quality: {step.quality}")
        before = step.plan
    return [*lines, f"it fits so: {size_in(ladder.plan.smi_peak_bytes, whole)}{_about(ladder.plan)}"]


def _difference(before: Plan, after: Plan, whole: int) -> str:
    saved = before.smi_peak_bytes - after.smi_peak_bytes
    factor = time_factor(before, after)
    words = f"saves {size_in(saved, whole)}" if saved >= 0 else f"costs {size_in(-saved, whole)}"
    if factor is None:
        return words
    return f"{words}, " + ("no more time" if abs(factor - 1) < 0.005 else f"{factor - 1:+.0%} time (an estimate)")


def _about(plan: Plan) -> str:
    return "" if plan.seconds_per_step is None else f", about {seconds(plan.seconds_per_step)} a step (an estimate)"


def shown(value: Value) -> str:
    """A value as a settings file has it."""
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
