"""The form of a new run, out of the settings' own description; and what a filled-in form means.

In: dotted key → text, as a browser sends it. Out: fields by section for the page; a recipe, a command, and faults by key in
the settings' own words.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from fitune.config.fields import FREE, Field, all_fields, sections
from fitune.config.sections import Settings
from fitune.config.settings_loader import load_settings
from fitune.config.values import shown
from fitune.data.read.mixture import sources_in
from fitune.errors import DataError, SettingsError
from fitune.methods.registry import METHODS
from fitune.studio.confine import Folders, Refused, is_plain_name

# Asked first; then what most people touch; the rest by section, on demand.
FIRST = ("model.name", "data.train", "method")
COMMON = (
    "run.name", "data.eval", "data.eval_share", "data.max_length", "train.epochs", "train.max_steps", "train.learning_rate",
    "train.batch_size", "train.micro_batch_size", "train.gradient_checkpointing", "model.quantization", "lora.rank",
    "eval.every_steps", "memory.budget",
)  # fmt: skip
PLACED = "run.folder"  # the studio's own
# Settings whose values are files or folders.
PATHS = (
    "data.train",
    "data.eval",
    "model.name",
    "model.merge",
    "model.chat_template",
    "lora.continue_from",
    "rl.rewards",
)
NO_FILES = ("hub:", "demo:", "run:")


@dataclass(frozen=True)
class Filled:
    """A filled-in form. faults: key → sentences, "" for those of no field."""

    name: str
    values: dict[str, str]
    recipe: str
    command: str
    faults: dict[str, list[str]] = field(default_factory=dict)
    settings: Settings | None = None


@cache
def groups() -> list[tuple[str, str, list[Field]]]:
    """(section, what it is about, its fields) without those that are asked first."""
    known = [one for key, one in all_fields().items() if key not in (*FIRST, *COMMON, PLACED)]
    titles = {"": "How fitune decides", **sections()}
    return [
        (name, about, [one for one in known if one.section == name])
        for name, about in titles.items()
        if name != FREE and any(one.section == name for one in known)
    ]


def fill(form: Mapping[str, str], folders: Folders) -> Filled:
    """What a form means: only what was filled in is set; everything else stays at its default."""
    values = {key: text.strip() for key, text in form.items() if key in all_fields() and key != PLACED and text.strip()}
    faults: dict[str, list[str]] = {}
    name = values.get("run.name") or _new_name(values)
    settings = None
    place = _relative(folders.runs)
    try:
        settings = load_settings(None, {**values, "run.name": name, PLACED: place})
    except SettingsError as error:
        for one in error.faults:
            key, sentence = _placed(one)
            faults.setdefault(key, []).append(sentence)
    except ValueError as error:
        faults.setdefault("", []).append(str(error))
    if "data.train" not in values:
        faults.setdefault("data.train", []).insert(0, "is empty; name a file, hub:NAME, or demo:pig-latin")
    for key, sentence in outside(values, folders):
        faults.setdefault(key, []).append(sentence)
    if not is_plain_name(name):
        faults.setdefault("run.name", []).append(f"is {shown(name)}; use one folder name")
    elif (folders.runs / name).exists():
        faults.setdefault("run.name", []).append(f"is {shown(name)}, and there is such a run; choose another name")
    own, odd = _own_lines(form.get(FREE, ""))
    if odd:
        faults.setdefault(FREE, []).append(odd)
    return Filled(
        name=name,
        values=values,
        recipe=_recipe(settings, values, own, name, place),
        command=shlex.join(["fitune", "train", *_flags({**values, "run.name": name}, own, place)]),
        faults=faults,
        settings=settings,
    )


def changed(settings: Mapping[str, Any]) -> dict[str, str]:
    """The settings of a run that differ from the defaults, as a form shows them."""
    found: dict[str, str] = {}
    for key, one in all_fields().items():
        section, _, name = key.rpartition(".")
        part = settings.get(section, {}) if section else settings
        value = part.get(name, one.default) if isinstance(part, dict) else one.default
        if value != one.default and key not in (PLACED, "run.name"):
            found[key] = text_of(value)
    return found


def text_of(value: object) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return ",".join(f"{name}={text}" for name, text in value.items())
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def _placed(fault: str) -> tuple[str, str]:
    """(key, sentence) of a fault as `load_settings` writes it: ``--lora.rank is 0; …`` or ``lora.rank is …``."""
    found = re.match(r"(?:--)?([a-z_.]+)[:,]? (.*)", fault, re.DOTALL)
    if found and (found[1] in all_fields() or found[1].startswith(f"{FREE}.")):
        return (FREE if found[1].startswith(f"{FREE}.") else found[1]), found[2]
    return "", fault


def outside(values: Mapping[str, str], folders: Folders) -> list[tuple[str, str]]:
    """Files that the person did not open, by the setting that names them."""
    found: list[tuple[str, str]] = []
    for key in PATHS:
        for name in _names_in(values.get(key, "")):
            path = Path(name.split(":")[0]) if key == "rl.rewards" else Path(name)
            if name.startswith(NO_FILES) or not _is_file_name(path):
                continue
            try:
                folders.file(str(path))
            except Refused as error:
                if error.status == 403:
                    found.append((key, f"is {error}"))
    return found


def _names_in(text: str) -> list[str]:
    """The names that a value holds, without weights in front or behind."""
    try:
        names = [source.name for source in sources_in(text)] if text else []
    except DataError:
        names = text.strip("[]").split(",")
    return [re.sub(r"^[0-9.]+\*", "", name.strip()) for name in names]


def _is_file_name(path: Path) -> bool:
    """Whether a name means a place on this machine, there or not: hub ids and names of runs do not."""
    return path.is_absolute() or str(path).startswith("~") or ".." in path.parts or path.exists()


def _new_name(values: Mapping[str, str]) -> str:
    """``smollm2-135m-instruct-my-data-1129-0855``: model, data, time."""
    parts = [Path(values.get("model.name", str(all_fields()["model.name"].default))).name]
    parts.append(Path(values.get("data.train", "").split(",")[0].rpartition(":")[2]).stem)
    words = [re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-.")[:40] for part in parts]
    return "-".join([*filter(None, words), datetime.now().strftime("%m%d-%H%M%S")])


def _relative(folder: Path) -> str:
    """A folder as a recipe names it: below the current one where it is."""
    here = Path.cwd()
    return str(folder.relative_to(here)) if folder.is_relative_to(here) else str(folder)


def _own_lines(text: str) -> tuple[dict[str, str], str]:
    """(fields of transformers' TrainingArguments, what is wrong): lines ``name=value``."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, mark, value = line.partition("=")
        if not mark or not name.strip().isidentifier():
            return found, f'has the line "{line[:60]}"; write name=value, for example adam_beta2=0.95'
        found[name.strip()] = value.strip()
    return found, ""


def _recipe(settings: Settings | None, values: Mapping[str, str], own: Mapping[str, str], name: str, place: str) -> str:
    """YAML of what is set. Without whole settings, of what was written."""
    nested: dict[str, Any] = {}
    whole = settings.model_dump(mode="json") if settings else {}
    for key in [*values, "run.name", PLACED]:
        section, _, last = key.rpartition(".")
        given: object = {"run.name": name, PLACED: place}.get(key, values.get(key))
        if whole:
            given = whole[section][last] if section else whole[last]
        if section:
            nested.setdefault(section, {})[last] = given
        else:
            nested[last] = given
    if own:
        nested[FREE] = {key: yaml.safe_load(value) for key, value in own.items()}
    return yaml.safe_dump(nested, sort_keys=False, allow_unicode=True)


def _flags(values: Mapping[str, str], own: Mapping[str, str], place: str) -> list[str]:
    words = [word for key, text in values.items() for word in (f"--{key}", text)]
    words += [word for key, text in own.items() for word in (f"--{FREE}.{key}", text)]
    return words if place == "runs" else [*words, f"--{PLACED}", place]


def methods() -> list[tuple[str, str, str]]:
    """(word, what it is, what a row is) of every method."""
    rows = {
        "rows": "conversations, prompts with answers, or text",
        "text": "plain text",
        "pairs": "two answers to a prompt, the better one first",
        "judged": "an answer and whether it is good",
        "prompts": "prompts",
    }
    return [(one.name, one.help, rows[one.reads]) for one in METHODS.values()]
