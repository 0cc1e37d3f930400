"""The question of `fitune plan`, out of the command line's words: settings, model, rows, card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import click

if TYPE_CHECKING:
    from fitune.config.sections import Settings
    from fitune.planning.gpus.catalogue import Gpu
    from fitune.planning.model_config import ModelConfig
    from fitune.planning.predict import Plan
    from fitune.planning.report.plan_report import View
    from fitune.planning.scenario import Scenario

UNKNOWN_LENGTH_TOKENS = 1024


class PlanOptions(TypedDict):
    """Options of `fitune plan` itself, beside the settings."""

    data_file: str | None
    seq_len: int | None
    gpu_name: str | None
    budget: str | None
    ladder: bool
    explain: bool
    as_json: bool
    svg_file: str | None
    html_file: str | None
    expandable_segments: bool
    gpus: int
    strategy: str | None


@dataclass(frozen=True)
class PlanQuestion:
    """The question: settings, model, rows, card."""

    settings: Settings
    config: ModelConfig
    rows: tuple[tuple[int, int], ...]
    """(tokens, trained tokens) of each real row; empty when every row has ``tokens`` tokens."""
    tokens: int
    """The longest row."""
    gpu: Gpu
    card: str | None
    """The card's name; None when none was found or named."""
    expandable: bool
    notes: tuple[str, ...] = ()

    def scenario(self, changes: Mapping[str, object] | None = None, tokens: int | None = None) -> Scenario:
        """What `fitune train` would run, with some settings (dotted names) or the rows' length changed.

        Raises:
            PlanError: a combination that cannot be trained.
        """
        from fitune.errors import PlanError
        from fitune.training.plan_scenario import largest_pass_of, rows_of_length, scenario_of, with_changes

        settings = with_changes(self.settings, changes or {})
        largest = (
            largest_pass_of(settings, self.rows)
            if self.rows and tokens is None
            else rows_of_length(settings, tokens or self.tokens)
        )
        try:
            return scenario_of(settings, **vars(largest), fast_bf16=self.gpu.capability >= (8, 0))
        except ValueError as error:
            raise PlanError(str(error)) from error

    def plan(self, scenario: Scenario) -> Plan:
        """The plan of a scenario, its time estimated; by the closed form, and so labelled, when it cannot be traced."""
        from fitune.errors import NotTraced
        from fitune.planning.closed_form import untraced_plan
        from fitune.planning.gpus.step_time import with_time
        from fitune.planning.predict import predict

        try:
            made = predict(self.config.values, scenario, self.gpu, self.expandable, only_plans=True)
        except NotTraced as error:
            return untraced_plan(self.config.values, scenario, self.gpu, str(error))
        return with_time(made, scenario, self.gpu)

    def heading(self) -> str:
        """Model and rows, for answers of many plans."""
        count = self.settings.train.micro_rows
        return f"{self.config.name}: {count} {'row' if count == 1 else 'rows'} of {self.tokens:,} tokens"

    def view(self, scenario: Scenario, made: Plan) -> View:
        """What is shown of it."""
        from fitune.models.families.family_sheet import family_note
        from fitune.planning.report.plan_report import UNFUSED, View, describe

        usable = None if self.card is None else self.gpu.usable_bytes
        unfused = (UNFUSED,) if scenario.quantized and not scenario.gradient_checkpointing else ()
        notes = (family_note(self.config.values["model_type"]), *self.notes, *self.config.notes, *unfused)
        return View(
            model=self.config.name,
            question=describe(scenario),
            plan=made,
            card=self.card,
            usable_bytes=usable,
            context_bytes=self.gpu.context_bytes,
            notes=notes,
        )


def ask(model: str | None, recipes: list[str], overrides: Mapping[str, object], given: PlanOptions) -> PlanQuestion:
    """The question; ``given`` holds the command's own options.

    Raises:
        ModelError, SettingsError, DataError, PlanError: with the value and the fix.
        click.UsageError: two answers to one question.
    """
    from fitune.config.settings_loader import load_settings
    from fitune.planning.model_config import config_of
    from fitune.sizes import parse_bytes

    named = {"model.name": model} if model else {}
    named |= {"data.train": given["data_file"]} if given["data_file"] else {}
    for key, value in named.items():
        if overrides.get(key, value) != value:
            raise click.UsageError(f"{value} and --{key} {overrides[key]} contradict each other; give one")
    settings = load_settings(recipes[0] if recipes else None, {**overrides, **named})
    config = config_of(settings.model.name, settings.model.revision)
    gpu, card, notes = _card(
        given["gpu_name"], given["budget"] or (None if given["gpu_name"] else settings.memory.budget)
    )
    settings, unpacked = _as_packed(settings, config)
    if given["gpu_name"] and settings.memory.budget:
        gpu = replace(gpu, usable_bytes=min(gpu.usable_bytes, parse_bytes(settings.memory.budget)))
    has_data = given["data_file"] or recipes or "data.train" in overrides
    if has_data and given["seq_len"] is None:
        rows = _rows(settings, settings.model.name)
        tokens, note = max(length for length, _ in rows), ()
    else:
        rows = ()
        tokens, note = _tokens(settings, config, given["seq_len"])
    return PlanQuestion(
        settings=settings,
        config=config,
        rows=rows,
        tokens=tokens,
        gpu=gpu,
        card=card,
        expandable=given["expandable_segments"],
        notes=(*notes, *note, *unpacked),
    )


def _as_packed(settings: Settings, config: ModelConfig) -> tuple[Settings, tuple[str, ...]]:
    """The settings with rows padded where the model's config says that they cannot be packed, and why."""
    from fitune.data.packing.config_refusal import refused_by_config
    from fitune.training.plan_scenario import packs_rows, with_changes

    values = cast("Mapping[str, object]", config.values.get("text_config") or config.values)
    refusal = refused_by_config(values.get)
    if refusal is None or not packs_rows(settings):
        return settings, ()
    return with_changes(settings, {"data.packing": "off"}), (f"rows are padded, not packed: {refusal}",)


def _card(name: str | None, budget: str | None) -> tuple[Gpu, str | None, tuple[str, ...]]:
    """(card, its name for the verdict or None, notes)."""
    from fitune.planning.gpus import catalogue

    if name and budget:
        raise click.UsageError("--gpu and --budget contradict each other; give one")
    if name:
        gpu = catalogue.find_gpu(name)
        return gpu, gpu.name, ()
    if budget:
        gpu = catalogue.budget(catalogue.parse_bytes(budget))
        return gpu, gpu.name, ()
    if (gpu := catalogue.present()) is not None:
        return gpu, gpu.name, ()
    gpu = catalogue.budget(2**50)
    kind = f"compute capability {gpu.capability[0]}.{gpu.capability[1]}"
    return gpu, None, (f"no GPU was found or named: kernels and CUDA context are those of a card of {kind}",)


def _tokens(settings: Settings, config: ModelConfig, seq_len: int | None) -> tuple[int, tuple[str, ...]]:
    """(length of every row, notes)."""
    context = config.context_tokens
    length = seq_len or settings.data.max_length
    if length is None:
        length = min(UNKNOWN_LENGTH_TOKENS, context or UNKNOWN_LENGTH_TOKENS)
        return length, (f"rows of {length:,} tokens are assumed; give yours with --data or --seq-len",)
    beyond = context is not None and length > context
    return length, (f"rows have {length:,} tokens and the model has {context:,} positions",) if beyond else ()


def _rows(settings: Settings, name: str) -> tuple[tuple[int, int], ...]:
    """(tokens, trained tokens) of each row, rendered and tokenized as training does."""
    from fitune.errors import ModelError
    from fitune.models.load_config import load_config
    from fitune.models.source import ModelSource, resolve
    from fitune.models.template import resolve_template
    from fitune.models.tokenizer import load_tokenizer
    from fitune.training.plan_scenario import row_sizes
    from fitune.training.setup import make_renderer, read_data

    if name.endswith(".json"):
        raise ModelError(
            f"the rows' lengths need a tokenizer, and {name} is only a config; "
            "name the model's folder or hub id, or give --seq-len"
        )
    # A folder needs no weights here.
    folder = Path(name).expanduser()
    is_folder = folder.is_dir()
    source = (
        ModelSource(kind="folder", name=name, path=str(folder)) if is_folder else resolve(name, settings.model.revision)
    )
    tokenizer = load_tokenizer(source, settings.model.trust_remote_code)
    config = load_config(source, settings.model.trust_remote_code)
    renderer = make_renderer(
        tokenizer, resolve_template(tokenizer, settings.model.chat_template), config, settings.data
    )
    return row_sizes(settings, read_data(settings, config, renderer, ()).train)
