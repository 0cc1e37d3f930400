"""The fit ladder over a made-up card: needs and times are formulas, so every expected choice can be worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fitune.errors import DoesNotFit, PlanError
from fitune.planning.predict import Plan
from fitune.planning.search.ladder import (
    CHECKPOINTING,
    KEYS,
    LENGTH,
    MICRO,
    OFFLOADING,
    OPTIMIZER,
    QUANTIZATION,
    TILES,
    TUNING,
    Start,
    format_ladder,
)
from fitune.planning.search.ladder_search import climb

GIB = 2**30
ASKED: dict[str, Any] = {
    MICRO: 8, CHECKPOINTING: False, OPTIMIZER: "adamw", TUNING: "lora", QUANTIZATION: "none", LENGTH: 1000,
}  # fmt: skip
WEIGHTS = {"none": 16.0, "int8": 8.0, "nf4": 4.0}


def start(fixed: tuple[str, ...] = (LENGTH,), **asked: Any) -> Start:
    values = {
        **ASKED,
        **{KEYS[[key.rpartition(".")[2] for key in KEYS].index(name)]: one for name, one in asked.items()},
    }
    return Start(values, 8, frozenset(fixed), lambda length: length / 1000, (900, 500))


class Card:
    """GiB and seconds of a configuration: weights, states, and 1 GiB of activations a row (a quarter when recomputed)."""

    def __init__(self, usable: float, values: dict[str, Any] = ASKED):
        self.usable = usable
        self.values = values
        self.asked: list[dict[str, Any]] = []

    def __call__(self, changes: dict[str, Any]) -> Plan:
        self.asked.append(changes)
        now = {**self.values, **changes}
        rows = now[MICRO] * now[LENGTH] / 1000
        states = (16.0 if now[TUNING] == "full" else 1.0) * (0.25 if now[OPTIMIZER] == "adamw_8bit" else 1.0)
        need = WEIGHTS[now[QUANTIZATION]] + states + rows * (0.25 if now[CHECKPOINTING] else 1.0)
        slower = {"none": 1.0, "int8": 1.5, "nf4": 1.2}[now[QUANTIZATION]] * (1.3 if now[CHECKPOINTING] else 1.0)
        seconds = slower * (8 / now[MICRO]) ** 0.2 * now[LENGTH] / 1000
        return Plan(0, 0, round(need * GIB), {}, "", {}, need <= self.usable, seconds_per_step=seconds)


def test_what_fits_as_asked_is_left_alone_and_costs_one_plan():
    card = Card(25)
    found = climb(start(), card)
    assert (found.changes, found.steps, found.tried) == ({}, (), 1)
    assert card.asked == [{}]


def test_smaller_micro_batches_come_before_checkpointing_when_they_are_faster():
    found = climb(start(), Card(21))  # 16 + 1 + 4 rows
    assert found.changes == {MICRO: 4}  # (8/4)^0.2 = 1.15 < 1.3
    assert found.steps[0].name == "micro-batches of 4 rows, 2 a step"


def test_checkpointing_is_taken_when_it_is_faster_than_tiny_micro_batches():
    found = climb(start(), Card(19))  # 2 rows: 1.32 times the time; all 8 rows recomputed: 1.3
    assert found.changes == {CHECKPOINTING: True}


def test_a_quantized_base_is_the_last_resort_though_it_would_be_faster():
    found = climb(start(), Card(17.1))
    # 1 row recomputed beside an 8-bit Adam: 16 + 0.25 + 0.25; NF4 with all rows would be faster, and is another level.
    assert QUANTIZATION not in found.changes and found.plan.fits
    found = climb(start(), Card(10))
    assert found.changes[QUANTIZATION] == "int8"
    assert climb(start(), Card(6)).changes[QUANTIZATION] == "nf4"


@pytest.mark.parametrize("usable", [5, 8, 10, 13, 16.6, 17, 18, 19, 20, 22, 24])
def test_the_choice_is_that_of_trying_everything(usable):
    """The reference tries every combination of the open settings."""
    from itertools import product

    card, best = Card(usable), None
    for quantization, (checkpointing, optimizer, rows) in product(
        WEIGHTS, list(product((False, True), ("adamw", "adamw_8bit"), (8, 4, 2, 1)))
    ):
        plan = card({QUANTIZATION: quantization, CHECKPOINTING: checkpointing, OPTIMIZER: optimizer, MICRO: rows})
        if plan.fits and plan.seconds_per_step is not None:
            cost = plan.seconds_per_step * (1.05 if optimizer == "adamw_8bit" else 1.0)
            one = (list(WEIGHTS).index(quantization), cost)
            best = one if best is None else min(best, one)
    if best is None:
        with pytest.raises(DoesNotFit):
            climb(start(), card)
        return
    found = climb(start(), card)
    handicap = 1.05 if found.changes.get(OPTIMIZER) else 1.0
    level = list(WEIGHTS).index(found.changes.get(QUANTIZATION, "none"))
    assert found.plan.fits and (level, (found.plan.seconds_per_step or 0) * handicap) == pytest.approx(best)


def test_what_is_fixed_stays_and_the_error_names_the_nearest_miss_and_the_way_out():
    values = {**ASKED, TUNING: "full"}
    fixed = (TUNING, QUANTIZATION, LENGTH)
    with pytest.raises(DoesNotFit) as caught:
        climb(start(fixed, tuning="full"), Card(18, values))
    text = str(caught.value)
    # nearest: 16 + 16/4 + 1/4 of one row
    assert "as asked the run needs 40.00 GiB" in text and "at 20.25 GiB" in text
    assert "LoRA instead of full fine-tuning" in text and "set train.tuning lora" in text
    assert "memory.may_change [train.tuning]" in text


def test_nothing_that_fitune_can_change_helps():
    with pytest.raises(DoesNotFit, match="smaller model"):
        climb(start(KEYS), Card(1))
    with pytest.raises(DoesNotFit, match=r"base weights in NF4 at 4\.50 GiB"):
        climb(start(), Card(4))


def test_shorter_rows_only_where_they_are_allowed_and_after_everything_else():
    with pytest.raises(DoesNotFit, match="rows of at most 500 tokens, which would fit"):
        climb(start(), Card(4.4))
    found = climb(start(()), Card(4.4))
    assert found.changes[LENGTH] == 500 and found.changes[QUANTIZATION] == "nf4"
    step = next(step for step in found.steps if step.key == LENGTH)
    assert step.name == "rows of at most 500 tokens" and step.quality == "50.0% of the rows are left out"


def test_full_fine_tuning_that_may_change_takes_lora_before_a_quantized_base():
    values = {**ASKED, TUNING: "full"}

    def possible(changes: dict[str, Any]) -> bool:
        now = {**values, **changes}
        return now[TUNING] == "lora" or now[QUANTIZATION] == "none"

    found = climb(start((LENGTH,), tuning="full"), Card(18, values), possible)
    assert found.changes[TUNING] == "lora" and QUANTIZATION not in found.changes
    found = climb(start((LENGTH,), tuning="full"), Card(6, values), possible)
    assert [step.key for step in found.steps if step.key in (TUNING, QUANTIZATION)] == [TUNING, QUANTIZATION]


def test_each_step_says_what_it_saves_and_costs():
    found = climb(start(), Card(16.9))
    lines = format_ladder(found, "RTX 4090", round(17 * GIB), 0.05)
    assert lines[0] == "as asked it needs 25.00 GiB, and there is 16.15 GiB (17.00 GiB of RTX 4090 less a margin of 5%)"
    assert (
        lines[1].startswith("micro-batches of ") and "time (an estimate); quality: the result is the same" in lines[1]
    )
    assert any(line.startswith("8-bit Adam: saves 0.75 GiB") and "2110.02861" in line for line in lines)
    assert lines[-1].startswith("it fits so: 16.")
    saved = sum(row["saves_bytes"] for row in found.to_dict()["steps"])
    assert saved == found.asked.smi_peak_bytes - found.plan.smi_peak_bytes
    assert found.to_dict()["asked_fits"] is False
    assert [KEYS.index(step.key) for step in found.steps] == sorted(KEYS.index(step.key) for step in found.steps)


def test_without_times_the_fewest_concessions_win():
    card = Card(19)
    found = climb(start(), lambda changes: replace(card(changes), seconds_per_step=None))
    assert found.changes == {MICRO: 2}
    assert "time" not in " ".join(format_ladder(found, "x", round(19 * GIB), 0.0))


def test_what_cannot_be_trained_is_no_start():
    with pytest.raises(PlanError, match="cannot be trained"):
        climb(start(), Card(20), lambda changes: bool(changes))


def test_few_plans_are_enough():
    card = Card(18)
    climb(start(), card)
    assert len(card.asked) <= 12  # of 48


# ---- tiles and layer inputs on the host


class LongRows(Card):
    """Rows of 16 GiB: half of it activations of one layer, which tiles quarter, half layer inputs, which may leave."""

    def __call__(self, changes: dict[str, Any]) -> Plan:
        self.asked.append(changes)
        now = {**self.values, **changes}
        layer, inputs = (2.0, 8.0) if now[CHECKPOINTING] else (64.0, 8.0)
        need = 4.0 + (layer / 4 if now[TILES] else layer) + (0.5 if now[OFFLOADING] else inputs)
        seconds = 1.0 + 0.3 * now[CHECKPOINTING] + 0.1 * now[TILES] + 0.05 * now[OFFLOADING]
        return Plan(0, 0, round(need * GIB), {}, "", {}, need <= self.usable, seconds_per_step=seconds)


LONG = {**ASKED, MICRO: 1, TILES: False, OFFLOADING: False}


@pytest.mark.parametrize(
    ("usable", "wanted"),
    [
        (80, []),
        (14.5, [CHECKPOINTING]),
        (13, [CHECKPOINTING, TILES]),
        (6, [CHECKPOINTING, TILES, OFFLOADING]),
    ],
)
def test_tiles_and_the_host_come_in_the_order_of_their_price(usable: float, wanted: list[str]):
    card = LongRows(usable, LONG)
    found = climb(Start(LONG, 1, frozenset({LENGTH, QUANTIZATION, OPTIMIZER})), card)
    assert [step.key for step in found.steps] == wanted and found.plan.fits
    assert all(step.quality == "the result is the same" for step in found.steps)
    assert all(changes.get(CHECKPOINTING) for changes in card.asked if changes.get(OFFLOADING))


def test_without_checkpointing_nothing_goes_to_the_host():
    card = LongRows(75, LONG)
    with pytest.raises(DoesNotFit):
        climb(Start(LONG, 1, frozenset({LENGTH, QUANTIZATION, OPTIMIZER, CHECKPOINTING, TILES})), card)
    assert all(changes.get(CHECKPOINTING) for changes in card.asked if changes.get(OFFLOADING))
