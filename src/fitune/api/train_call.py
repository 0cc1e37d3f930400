"""`fitune.train`: settings by keywords."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.config.sections import Settings
from fitune.config.settings_loader import load_settings
from fitune.console import be_quiet_in_a_notebook
from fitune.errors import SettingsError

if TYPE_CHECKING:
    from fitune.runs.run_result import RunResult


def train(
    settings: Settings | str | Path | None = None,
    *,
    model: str | Path | None = None,
    data: str | Path | Sequence[str] | None = None,
    method: str | None = None,
    name: str | None = None,
    resume: bool | str | Path = False,
    exclude: Sequence[str] = (),
    **changes: object,
) -> RunResult:
    """Fine-tune a model, from settings to a saved adapter or model.

        fitune.train(model="HuggingFaceTB/SmolLM2-360M-Instruct", data="my.jsonl", train={"max_steps": 100})
        fitune.train("recipe.yaml", lora__rank=32)
        fitune.train(resume="runs/NAME")

    Args:
        settings: a recipe (YAML file) or `fitune.Settings`; None starts from the defaults.
        model: model.name: a model on the hub, a folder, a GGUF file, or a built-in model.
        data: data.train: a file, a folder, hub:NAME, or a list of these.
        method: sft, lm, dpo, kto, grpo and so on.
        name: run.name; None derives it from model, data and time.
        resume: a run's name or folder to resume, with its own settings; True resumes the run that `name` names.
        exclude: sentences that the demo task must not generate.
        changes: any other setting (docs/settings.md), by section, `lora={"rank": 32}`, or in one word, `lora__rank=32`.

    Returns:
        The run: its folder, metrics before and after, `metrics()` as a data frame. After Ctrl-C its status is
        "interrupted", and a checkpoint is there.

    Raises:
        SettingsError: every fault in the settings at once, with suggestions.
        DataError, ModelError: before the first step, with the row or file and the remedy.
        TrainingHalted: the loss is not finite.
    """
    be_quiet_in_a_notebook()
    dotted = dotted_changes(changes, model=model, data=data, method=method, name=name)
    if settings is None and not dotted and resume not in (False, None, True):
        given = None
    elif isinstance(settings, Settings):
        given = changed(settings, dotted) if dotted else settings
    else:
        given = load_settings(settings, dotted)
        if resume in (False, None) and "train" not in given.data.model_fields_set:
            raise SettingsError(
                ['no training data is named; pass data="my.jsonl" (or data="demo:pig-latin" to try it)']
            )
    from fitune.training.run import train as run

    return run(given, resume=resume, exclude=exclude)


def dotted_changes(
    changes: Mapping[str, object],
    *,
    model: str | Path | None = None,
    data: str | Path | Sequence[str] | None = None,
    method: str | None = None,
    name: str | None = None,
) -> dict[str, object]:
    """Settings given by keywords, as dotted names: `lora={"rank": 8}` and `lora__rank=8` are lora.rank."""
    found: dict[str, object] = {}
    files = data if data is None or isinstance(data, str | Path) else list(data)
    for key, value in {"model": model, "data": files, **changes}.items():
        if isinstance(value, Mapping):
            found |= {f"{key}.{inner}": one for inner, one in value.items()}
        elif value is not None or key in changes:
            own = {"model": "model.name", "data": "data.train"}.get(key, key.replace("__", "."))
            found[own] = value
    found |= {"method": method} if method is not None else {}
    found |= {"run.name": name} if name is not None else {}
    return {key: str(value) if isinstance(value, Path) else value for key, value in found.items()}


def changed(settings: Settings, dotted: Mapping[str, object]) -> Settings:
    """A settings object with some settings changed, checked as if all had been given together."""
    set_before: dict[str, object] = {}
    for section, value in settings.model_dump(exclude_unset=True).items():
        if isinstance(value, dict):
            set_before |= {f"{section}.{name}": one for name, one in value.items()}
        else:
            set_before[section] = value
    return load_settings(None, {**set_before, **dotted})
