"""A chain: one recipe whose ``stages:`` are runs, each starting from the last.

In: the path of a YAML file. Out: a frozen `Chain` of `Stage`s, each with whole settings, or one error with every fault.

What stands beside ``stages:`` holds for every stage; a stage's own settings are stronger. A stage that trains a policy
goes on with the adapter of the last such stage before it; a reward model is a judge, so the stage after it does not go
on with it. ``from: NAME`` names another stage to start from, ``from: base`` none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from fitune.config.fields import all_fields
from fitune.config.sections import Settings
from fitune.config.settings_loader import by_key, settings_of
from fitune.config.yaml_source import Given, Sheet, read_mapping, read_root
from fitune.errors import SettingsError, did_you_mean
from fitune.methods.registry import METHODS

STAGES, NAME, FROM, BASE = "stages", "name", "from", "base"


@dataclass(frozen=True)
class Stage:
    """One run of a chain. Its folder is ``name`` below the chain's."""

    name: str
    settings: Settings


@dataclass(frozen=True)
class Chain:
    """Runs in their order; ``folder`` holds them all."""

    name: str
    folder: Path
    stages: tuple[Stage, ...]


def load_recipe(path: str | Path, overrides: Mapping[str, object] | None = None) -> Settings | Chain:
    """What a recipe holds: the settings of one run, or a chain of runs.

    Args:
        overrides: dotted key → value, stronger than the file; of a chain, for every stage.

    Raises:
        SettingsError: with every fault, of a chain of every stage.
    """
    path, sheet, flags = Path(path), Sheet(), by_key(overrides)
    root = read_root(path, sheet, stages=True)
    if isinstance(root, yaml.MappingNode) and any(key.value == STAGES for key, _ in root.value):
        return _chain(path, root, flags)
    if isinstance(root, yaml.MappingNode) and not sheet.faults:
        read_mapping(sheet, path, root, "")
    return settings_of(sheet, flags)


def _chain(path: Path, root: yaml.MappingNode, overrides: dict[str, object]) -> Chain:
    """A chain, each stage with whole settings."""
    shared = Sheet()
    listed = next(value for key, value in root.value if key.value == STAGES)
    rest = yaml.MappingNode(root.tag, [(key, value) for key, value in root.value if key.value != STAGES])
    read_mapping(shared, path, rest, "")
    name = str(overrides.pop("run.name", None) or _taken(shared.given, "run.name") or path.stem)
    above = str(overrides.pop("run.folder", None) or _taken(shared.given, "run.folder") or "runs")
    folder = Path(above) / name
    if not isinstance(listed, yaml.SequenceNode) or not listed.value:
        raise SettingsError(
            [f"{path}: stages is not a list; write `stages:` and below it `- method: sft`, `- method: dpo`"]
        )
    stages: list[Stage] = []
    faults = list(shared.faults)
    for number, one in enumerate(listed.value, start=1):
        try:
            stages.append(_stage(path, one, number, shared, overrides, folder, stages))
        except SettingsError as error:
            faults += [f"stage {number}: {fault}" for fault in error.faults]
    if faults:
        raise SettingsError(faults)
    return Chain(name, folder, tuple(stages))


def _stage(
    path: Path,
    node: yaml.Node,
    number: int,
    shared: Sheet,
    overrides: dict[str, object],
    folder: Path,
    before: list[Stage],
) -> Stage:
    """One stage with its place, its start and its judge worked out."""
    if not isinstance(node, yaml.MappingNode):
        raise SettingsError(
            [f"{path}:{node.start_mark.line + 1}: a stage is a mapping of settings, such as method: sft"]
        )
    own = Sheet()
    plain = [(key, value) for key, value in node.value if key.value not in (NAME, FROM)]
    read_mapping(own, path, yaml.MappingNode(node.tag, plain), "")
    words = {key.value: value.value for key, value in node.value if key.value in (NAME, FROM)}
    given = {**shared.given, **own.given}
    method = str(given["method"].value) if "method" in given else str(all_fields()["method"].default)
    name = words.get(NAME) or f"{number}-{method}"
    place = f"{path}:{node.start_mark.line + 1}"
    if any(stage.name == name for stage in before):
        raise SettingsError([f"{place}: there are two stages named {name}; give them other names"])
    for key in ("run.name", "run.folder"):
        if key in own.given:
            raise SettingsError(
                [f"{own.given[key].place} belongs to the whole chain; write `name:` for the stage's folder"]
            )
    given["run.name"] = Given("run.name", name, place)
    given["run.folder"] = Given("run.folder", str(folder), place)
    start = _start(words.get(FROM), before, place)
    if start is not None and "lora.continue_from" not in given:
        given["lora.continue_from"] = Given("lora.continue_from", str(folder / start.name), place)
        for key in [key for key in shared.given if key.startswith("lora.")]:
            del given[key]  # what is shared describes the first adapter; those after it are that adapter
    judge = next((stage for stage in reversed(before) if METHODS[stage.settings.method].makes_judge), None)
    samples = method in METHODS and METHODS[method].sampling is not None
    if judge is not None and samples and "rl.rewards" not in given:
        given["rl.rewards"] = Given("rl.rewards", [f"run:{folder / judge.name}"], place)
    return Stage(name, settings_of(Sheet(given, own.faults), overrides))


def _start(named: str | None, before: list[Stage], place: str) -> Stage | None:
    """The stage whose adapter is trained further; None for the base."""
    if named == BASE:
        return None
    if named is not None:
        known = {stage.name: stage for stage in before}
        if named not in known:
            names = [*known, BASE]
            said = f"from is {named}, which is not a stage before this one{did_you_mean(named, names)}"
            raise SettingsError([f"{place}: {said}; use {', '.join(names)}"])
        return known[named]
    return next((stage for stage in reversed(before) if not METHODS[stage.settings.method].makes_judge), None)


def _taken(given: dict[str, Given], key: str) -> object:
    """The value of a setting that belongs to the whole chain, taken away from the stages."""
    found = given.pop(key, None)
    return found.value if found is not None else None
