"""The run's own plan: fitted to the memory before the weights are loaded, compared with what was measured at its end.

In: settings, `RunSetup`, the layout of the rows. Out: `AutofitResult`; the plan's figures of what is really trained.
The last place of the plan that sees a settings object; the search is in fit.py, the measuring in memory.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeVar, cast

import psutil

from fitune.config.sections import Settings
from fitune.console import log, warn
from fitune.data.examples import questions_of
from fitune.data.packing.config_refusal import refused_by_config
from fitune.data.packing.largest_pass import LargestPass
from fitune.data.token_rows import PairRow, PromptRow, TokenRow
from fitune.errors import DoesNotFit, ModelError, PlanError
from fitune.planning.cpu_memory import plan_cpu
from fitune.planning.gpus import catalogue
from fitune.planning.gpus.catalogue import Gpu
from fitune.planning.gpus.step_time import with_time
from fitune.planning.predict import Card, Plan, predict
from fitune.planning.scenario import Scenario
from fitune.planning.search.ladder import format_ladder
from fitune.sizes import parse_bytes, size_in
from fitune.trainers.worst_case_batch import Batches, largest_pass
from fitune.training.autofit_search import AutofitResult, Room, Rows, facts_of, room_on, search
from fitune.training.plan_scenario import (
    largest_pass_of,
    packs_rows,
    row_sizes,
    sampled_by,
    scenario_of,
    with_changes,
)
from fitune.training.run_setup import RunSetup

AnyRow = TypeVar("AnyRow", bound=TokenRow | PairRow | PromptRow)

# Below so many parameters a CPU's process grows by its libraries more than by the model: nothing to compare.
SMALLEST_ON_CPU = 20_000_000


def autofit_run(settings: Settings, setup: RunSetup) -> AutofitResult:
    """The settings to train with: those asked for, or the fastest that fit the memory.

    Raises:
        DoesNotFit: nothing that the user left open fits.
    """
    device, budget = setup.hardware.device, settings.memory.budget
    if settings.fit == "off" or (device != "cuda" and budget is None):
        return AutofitResult(settings)
    if device == "mps":
        warn("memory.budget is ignored: the memory of Apple GPUs cannot be planned yet")
        return AutofitResult(settings)
    asked = with_precision(settings, setup)
    room = room_of(asked, setup)
    try:
        values = setup.plan_config
        log(f"memory: planning the run in {_in_words(room)}, before its weights are loaded")
        one_plan, small, made = _plan_on_cpu if device == "cpu" else _plan_on_card, room.less_margin(), list[Plan]()

        def plan_of(scenario: Scenario) -> Plan:
            made.append(one_plan(values, small, setup, scenario))
            if len(made) == 1 and not made[0].fits:
                log(
                    "memory: these settings do not fit; searching for some that do (each configuration is traced once, then cached)"
                )
            return made[-1]

        found = search(asked, rows_of(asked, setup), plan_of, setup.hardware.fast_bf16, "quantization_config" in values)
    except DoesNotFit as error:
        raise DoesNotFit(f"the run does not fit {_in_words(room)}: {error}") from None
    except (PlanError, ModelError) as error:
        warn(f"memory: no plan can be made, so training starts with the settings as they are: {error}")
        return AutofitResult(settings)
    for line in format_ladder(found, room.words, room.gpu.usable_bytes, room.margin):
        log(f"memory: {line}")
    return AutofitResult(with_changes(settings, found.changes), facts_of(found, settings, room))


def _plan_on_card(values: dict[str, object], gpu: Card | Gpu, setup: RunSetup, scenario: Scenario) -> Plan:
    return with_time(predict(values, scenario, gpu), scenario, gpu)


def _plan_on_cpu(values: dict[str, object], room: Card | Gpu, setup: RunSetup, scenario: Scenario) -> Plan:
    """The growth of the process on top of what it holds now; how long a step takes is not known."""
    made = plan_cpu(values, scenario, _row_tokens(setup, scenario))
    need = psutil.Process().memory_info().rss + made.growth_peak_bytes
    return Plan(
        allocated_peak_bytes=made.allocated_peak_bytes,
        reserved_peak_bytes=made.growth_peak_bytes,
        smi_peak_bytes=need,
        parts=made.parts,
        moment=made.moment,
        phases={},
        fits=need <= room.usable_bytes,
    )


def _row_tokens(setup: RunSetup, scenario: Scenario) -> int:
    """Tokens of a row of a pack."""
    return min(max(row.num_tokens for row in setup.data.train), scenario.seq_len)


def with_precision(settings: Settings, setup: RunSetup) -> Settings:
    """The settings with the device and the precision that were chosen for this machine."""
    return with_changes(settings, {"model.device": setup.hardware.device, "model.precision": setup.precision.name})


def room_of(settings: Settings, setup: RunSetup) -> Room:
    """The memory that the run may take: the card's, what is free of it, or the budget."""
    hardware, budget = setup.hardware, settings.memory.budget
    if hardware.device == "cpu" and budget is not None:
        process = Card("this process", parse_bytes(budget), (0, 0), 0)
        return Room(process, f"memory.budget {budget}", settings.memory.margin)
    major, minor = hardware.capability or (8, 0)
    gpu = catalogue.from_driver(hardware.name, hardware.memory_bytes, f"{major}.{minor}")
    return room_on(gpu, hardware.free_bytes, budget, settings.memory.margin)


def rows_of(settings: Settings, setup: RunSetup) -> Rows:
    """The rows as the ladder must know them."""
    prompts = prompt_tokens(settings, setup)

    @lru_cache(maxsize=64)
    def largest(micro: int, limit: int | None, mode: str) -> LargestPass:
        train, held_out = (_within(rows, limit) for rows in (setup.data.train, setup.data.eval))
        epochs = epochs_of(settings, len(train))
        return largest_pass(
            train,
            held_out,
            Batches(
                batch_rows=settings.train.batch_size,
                micro_rows=micro,
                seed=settings.train.seed,
                epochs=epochs,
                mode=mode,
            ),
            prompts,
        )

    def largest_of(changed: Settings) -> LargestPass:
        if sampled_by(changed) is not None:
            return sampled_pass(changed, setup.data.train)
        limit = changed.data.max_length if changed.data != settings.data else None
        return largest(changed.train.micro_rows, limit, likely_mode(changed, setup.plan_config))

    lengths = [longest_side(row) for row in setup.data.train]
    return Rows(lengths, largest_of, len(setup.template.added_tokens))


def epochs_of(settings: Settings, num_rows: int) -> float:
    """Passes over the rows, also where the steps are limited instead."""
    steps = settings.train.max_steps
    return settings.train.epochs if steps is None else steps * settings.train.batch_size / num_rows


def likely_mode(settings: Settings, config: Mapping[str, object]) -> str:
    """The layout that `choose_packing` will most likely find, before there is a model to ask."""
    if not packs_rows(settings) or refused_by_config(
        cast("Mapping[str, object]", config.get("text_config") or config).get
    ):
        return "off"
    random = settings.lora.dropout > 0 or bool(settings.trainer.get("neftune_noise_alpha"))
    return "rows" if settings.data.packing == "rows" or random else "tree"


def prompt_tokens(settings: Settings, setup: RunSetup) -> int | None:
    """The longest prompt that is answered in an evaluation; None when none is."""
    asked = questions_of(setup.data.eval_examples, settings.eval.samples)
    return max((len(setup.renderer.question_ids(one)) for one in asked), default=None)


def predicted_run(setup: RunSetup, mode: str, total_parameters: int) -> dict[str, object]:
    """The plan's figures of the run that is really trained, laid out as ``mode``; empty when none can be made.

    On a GPU allocated_bytes and reserved_bytes, on a CPU resident_growth_bytes.
    """
    settings, device = setup.settings, setup.hardware.device
    planned_here = total_parameters >= SMALLEST_ON_CPU if device == "cpu" else device == "cuda"
    if settings.fit == "off" or not planned_here:
        return {}
    settings = with_precision(settings, setup)
    try:
        train, held_out = setup.data.train, setup.data.eval
        if sampled_by(settings) is not None:
            largest = sampled_pass(settings, train)
        else:
            epochs, how = epochs_of(settings, len(train)), settings.train
            batches = Batches(
                batch_rows=how.batch_size, micro_rows=how.micro_rows, seed=how.seed, epochs=epochs, mode=mode
            )
            largest = largest_pass(train, held_out, batches, prompt_tokens(settings, setup))
        scenario = scenario_of(
            settings, **vars(largest), new_tokens=len(setup.template.added_tokens), fast_bf16=setup.hardware.fast_bf16
        )
        if device == "cpu":
            cpu = plan_cpu(setup.plan_config, scenario, largest.longest_tokens)
            return {"resident_growth_bytes": cpu.growth_peak_bytes, "moment": cpu.moment, "parts": cpu.parts}
        plan = predict(setup.plan_config, scenario, room_of(settings, setup).gpu)
    except Exception as error:  # the run is over and saved: a fault of its plan takes nothing from it
        warn(f"memory: no plan can be made: {type(error).__name__}: {error}")
        return {}
    return {
        "allocated_bytes": plan.allocated_peak_bytes,
        "reserved_bytes": plan.reserved_peak_bytes,
        "smi_bytes": plan.smi_peak_bytes,
        "moment": plan.moment,
        "parts": plan.parts,
    }


def sampled_pass(settings: Settings, prompts: Sequence[PromptRow]) -> LargestPass:
    """The largest pass over answers that are yet to be sampled: each as long as it may be."""
    return largest_pass_of(settings, row_sizes(settings, prompts))


def _within(rows: Sequence[AnyRow], limit: int | None) -> Sequence[AnyRow]:
    return rows if limit is None else [row for row in rows if longest_side(row) <= limit]


def longest_side(row: TokenRow | PairRow | PromptRow) -> int:
    """Tokens of a row, or of the longer side of a pair, which data.max_length limits."""
    return max(side.num_tokens for side in row.rows) if isinstance(row, PairRow) else row.num_tokens


def _in_words(room: Room) -> str:
    size = room.gpu.usable_bytes
    return f"{size_in(size * (1 - room.margin), size)} ({room.words}, less a margin of {room.margin:.0%})"
