"""Before a weight is loaded: does the run fit, and what is the fastest way that does. Said aloud, kept for the manifest.

In: settings, and what is known of the rows. Out: `AutofitResult`: the settings to train with, and the facts.
Knows nothing of models and trainers; torch is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from fitune.config.fields import given
from fitune.config.rules import cross_faults
from fitune.config.sections import Settings
from fitune.data.packing.largest_pass import LargestPass
from fitune.models.quantization import QUANTIZATIONS
from fitune.planning.gpus.catalogue import Gpu
from fitune.planning.predict import Card, Plan
from fitune.planning.scenario import Scenario
from fitune.planning.search import ladder
from fitune.planning.search.ladder_search import climb
from fitune.sizes import parse_bytes
from fitune.training.plan_scenario import scenario_of, with_changes

# Shorter rows that are tried: the lengths that so many of the rows do not exceed.
SHARES_KEPT = (0.99, 0.95, 0.9, 0.75, 0.5)


@dataclass(frozen=True)
class Rows:
    """What the ladder must know of the rows."""

    lengths: Sequence[int]
    """Tokens of each."""
    largest: Callable[[Settings], LargestPass]
    """The largest pass under changed settings; data.max_length leaves longer rows out."""
    new_tokens: int = 0
    """Tokens that the chat template adds to the model."""


@dataclass(frozen=True)
class AutofitResult:
    """What to train with."""

    settings: Settings
    facts: dict[str, object] = field(default_factory=dict[str, object])
    """For the manifest's "memory"."""


def open_settings(settings: Settings) -> frozenset[str]:
    """Those of `ladder.KEYS` that may be changed: left open by the user, or named in memory.may_change."""
    free = {key for key in ladder.KEYS if key not in given(settings) and key != ladder.LENGTH}
    return frozenset(free | set(settings.memory.may_change))


def start_of(settings: Settings, lengths: Sequence[int], base_is_quantized: bool = False) -> ladder.Start:
    """The ladder's first configuration: the run as asked."""
    train, ordered = settings.train, sorted(lengths)
    shorter = {ordered[math.ceil(share * len(ordered)) - 1] for share in SHARES_KEPT}
    if len(set(ordered)) == 1:  # rows of one length, as a plan without data has: leaving them out leaves nothing
        shorter = {ordered[0] * part // 4 for part in (3, 2, 1)}
    fixed = set(ladder.KEYS) - open_settings(settings)
    if base_is_quantized:
        fixed.add(ladder.QUANTIZATION)
    return ladder.Start(
        values={
            ladder.MICRO: train.micro_rows,
            ladder.CHECKPOINTING: train.gradient_checkpointing,
            ladder.TILES: train.tiled_mlp,
            ladder.OFFLOADING: train.activation_offloading,
            ladder.OPTIMIZER: train.optimizer,
            ladder.TUNING: train.tuning,
            ladder.QUANTIZATION: settings.model.quantization,
            ladder.LENGTH: ordered[-1],
        },
        batch_rows=train.batch_size,
        fixed=frozenset(fixed),
        kept_share=lambda length: sum(one <= length for one in ordered) / len(ordered),
        lengths=tuple(sorted((length for length in shorter if 0 < length < ordered[-1]), reverse=True)),
    )


def whole_changes(settings: Settings, changes: ladder.Changes) -> ladder.Changes:
    """The ladder's changes, and what must go with them."""
    more: ladder.Changes = {}
    kind = QUANTIZATIONS.get(str(changes.get(ladder.QUANTIZATION, "none")))
    if kind is not None and kind.double_quant and "model.double_quant" not in given(settings):
        more["model.double_quant"] = True  # as QLoRA does
    if ladder.LENGTH in changes and settings.data.too_long == "error":
        more["data.too_long"] = "drop"  # a row cut short would never learn to end
    return {**changes, **more}


def search(
    settings: Settings,
    rows: Rows,
    plan_of: Callable[[Scenario], Plan],
    fast_bf16: bool = True,
    base_is_quantized: bool = False,
) -> ladder.Ladder:
    """The fastest configuration that fits.

    Args:
        plan_of: the plan of a scenario in the memory there is, less the margin.
        fast_bf16: whether the card multiplies bf16 fast, for model.precision auto.
        base_is_quantized: the base on the disk is; then model.quantization is not open.

    Raises:
        DoesNotFit: nothing that the user left open fits.
        PlanError: the model's code cannot be traced.
    """

    def changed(changes: ladder.Changes) -> Settings:
        return with_changes(settings, whole_changes(settings, changes))

    def scenario(changes: ladder.Changes) -> Scenario:
        one = changed(changes)
        largest = rows.largest(one)
        return scenario_of(one, **vars(largest), new_tokens=rows.new_tokens, fast_bf16=fast_bf16)

    def possible(changes: ladder.Changes) -> bool:
        if any(cross_faults(changed(changes))):
            return False
        try:
            scenario(changes)
        except ValueError:
            return not changes  # what the user asked for: its fault is for the plan to tell
        return True

    found = climb(
        start_of(settings, rows.lengths, base_is_quantized), lambda changes: plan_of(scenario(changes)), possible
    )
    return replace(found, changes=whole_changes(settings, found.changes) if found.changes else {})


@dataclass(frozen=True)
class Room:
    """The memory that a run may take."""

    gpu: Card | Gpu
    """The card, its usable_bytes cut to what is free or named."""
    words: str
    """Whose memory it is."""
    margin: float

    def less_margin(self) -> Card | Gpu:
        """The card as the search sees it."""
        return replace(self.gpu, usable_bytes=int(self.gpu.usable_bytes * (1 - self.margin)))


def room_on(gpu: Card | Gpu, free_bytes: int | None, budget: str | None, margin: float) -> Room:
    """What a run may take on ``gpu``.

    Args:
        free_bytes: free on the card now, the CUDA context of this process already taken; None when it is not here.
        budget: memory.budget.
    """
    usable, words = gpu.usable_bytes, gpu.name
    if free_bytes is not None and free_bytes + gpu.context_bytes < usable:
        usable, words = free_bytes + gpu.context_bytes, f"what is free on {gpu.name}"
    if budget is not None and parse_bytes(budget) < usable:
        usable, words = parse_bytes(budget), f"memory.budget {budget}"
    return Room(replace(gpu, usable_bytes=usable), words, margin)


def facts_of(found: ladder.Ladder, settings: Settings, room: Room) -> dict[str, object]:
    """The ladder for the manifest; ``changes`` hold what was and what is, for a resumed run."""
    was = {key: _value(settings, key) for key in found.changes}
    return {
        "room": {"of": room.words, "usable_bytes": room.gpu.usable_bytes, "margin": room.margin},
        "ladder": {
            **found.to_dict(),
            "changes": {key: {"was": was[key], "is": value} for key, value in found.changes.items()},
        },
    }


def _value(settings: Settings, key: str) -> object:
    section, _, name = key.rpartition(".")
    return getattr(getattr(settings, section) if section else settings, name)
