"""Mixing and matching: which cells there are, how they are filled, what their table says."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from fitune.api.plan_question import PlanQuestion
from fitune.config.settings_loader import load_settings
from fitune.errors import PlanError
from fitune.planning.model_config import ModelConfig
from fitune.planning.predict import Card, Plan
from fitune.planning.scenario import Scenario
from fitune.planning.search import grid

CARD = Card("test", 2**34, (8, 0), 2**29)
CONFIG = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2,
}  # fmt: skip


def ask(changes: dict[str, Any]) -> Scenario:
    settings = load_settings(None, {"train.batch_size": 2, "data.eval_share": 0.0})
    return PlanQuestion(settings, ModelConfig("tiny", CONFIG, "test"), (), 64, CARD, "test", False).scenario(changes)


def faked(config: Any, scenario: Scenario, gpu: Any, expandable: bool = False, only_plans: bool = False) -> Plan:
    if scenario.weights == "nf4":
        raise PlanError("nf4 cannot be traced; use another")
    need = {"fp32": 4, "bf16": 2, "int8": 1}[scenario.weights] * 2**32
    return Plan(need, need, need, {"weights": need}, "step 2", {}, fits=need <= CARD.usable_bytes)


def test_48_combinations_are_possible_and_the_others_say_why() -> None:
    asked = grid.cells(ask)
    possible = [cell for cell in asked if cell.scenario]
    assert len(asked) == 64 and len(possible) == 48
    assert len({cell.scenario.key() for cell in possible if cell.scenario}) == 48
    refused = [cell for cell in asked if not cell.scenario]
    assert all(cell.names["tuning"] == "full" and cell.names["weights"] in ("int8", "nf4") for cell in refused)
    assert all("quantized weights cannot be trained" in cell.why for cell in refused)


def test_cells_are_filled_in_any_order_and_keep_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "predict", faked)
    done = grid.cells(ask)
    places = []
    for place, cell in grid.fill(done, CONFIG, CARD, False, processes=1):
        places.append(place)
        done[place] = cell
    assert sorted(places) == list(range(64))
    assert all(cell.plan for cell in done if cell.names["weights"] in ("fp32", "bf16"))
    assert {cell.why for cell in done if cell.names["weights"] == "nf4" and cell.names["tuning"] == "lora"} == {
        "nf4 cannot be traced"
    }


def test_the_table_names_the_fastest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grid, "predict", faked)
    done = grid.cells(ask)
    for place, cell in grid.fill(done, CONFIG, CARD, False, processes=1):
        slow = 2.0 if cell.names["checkpointing"] == "on" else 1.5 + place / 1000
        done[place] = replace(cell, plan=replace(cell.plan, seconds_per_step=slow) if cell.plan else None)
    best = grid.fastest(done)
    assert best is not None and best.plan is not None and best.plan.fits
    assert (best.names["checkpointing"] == "off" and best.names["weights"] != "fp32") or CARD.usable_bytes >= 2**34
    out = io.StringIO()
    grid.print_grid(Console(file=out, width=80), done, "test")
    text = out.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 110
    assert "× does not fit test" in text and "fastest that fits: weights" in text
    assert "1: " in text and "quantized weights cannot be trained" in text
    rows = [line for line in text.splitlines() if line.strip().startswith(("fp32", "bf16", "int8", "nf4"))]
    assert len(rows) == 16


def test_without_times_nothing_is_the_fastest() -> None:
    assert grid.fastest(grid.cells(ask)) is None


def test_cells_as_plain_values() -> None:
    cell = grid.Cell({"weights": "bf16"}, plan=faked(None, Scenario(), CARD))
    assert cell.to_dict()["allocated_peak_bytes"] == 2**33 and cell.to_dict()["weights"] == "bf16"
    assert grid.Cell({"weights": "nf4"}, why="no").to_dict() == {"weights": "nf4", "impossible": "no"}


@pytest.mark.slow
def test_other_processes_give_the_same_plans(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path / "a"))
    asked = [cell for cell in grid.cells(ask) if cell.scenario][:3]
    apart = dict(grid.fill(asked, CONFIG, CARD, False, processes=2))
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path / "b"))
    here = dict(grid.fill(asked, CONFIG, CARD, False, processes=1))
    assert {place: cell.plan for place, cell in apart.items()} == {place: cell.plan for place, cell in here.items()}
    # and now from the cache, without processes
    assert [place for place, _ in grid.fill(asked, CONFIG, CARD, False, processes=2)] == [0, 1, 2]
