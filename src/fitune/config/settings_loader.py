"""YAML file and overrides → `Settings`, or one error with every fault.

In: the path of a YAML file of differences from the defaults, and dotted overrides (texts of the command line, or
values). Out: `fitune.config.sections.Settings`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fitune.config.fields import FREE, all_fields
from fitune.config.rules import cross_faults
from fitune.config.sections import Settings
from fitune.config.suggestions import remedy
from fitune.config.trainer_options import fit_trainer
from fitune.config.values import Misfit, fit
from fitune.config.yaml_source import Given, Sheet, read_sheet
from fitune.earlier_names import with_new_names
from fitune.errors import SettingsError


def load_settings(path: str | Path | None = None, overrides: Mapping[str, object] | None = None) -> Settings:
    """Settings of a run.

    Args:
        path: a YAML file of differences from the defaults; None takes the defaults.
        overrides: dotted key → value, stronger than the file; a str is read as on the command line (``null``,
            ``1e-3``, ``a,b``, ``prompt=question``), other values are taken as they are.

    Raises:
        SettingsError: with every fault: its place, the value and the remedy.
    """
    return settings_of(read_sheet(Path(path)) if path is not None else Sheet(), by_key(overrides))


def by_key(overrides: Mapping[str, object] | None) -> dict[str, object]:
    """Overrides by the keys of their settings: with underscores, and by today's names.

    Raises:
        SettingsError: a setting is given by its earlier name and by today's.
    """
    return with_new_names({name.replace("-", "_"): value for name, value in (overrides or {}).items()}, "--")


def settings_of(sheet: Sheet, overrides: Mapping[str, object]) -> Settings:
    """`load_settings` for what has been read already; the overrides are those of `by_key`."""
    faults = list(sheet.faults)
    given = dict(sheet.given)
    for key, value in overrides.items():
        given[key] = Given(key, value, f"--{key}", is_text=isinstance(value, str))

    values, bad = _fit_all(given, faults)
    settings = _build(values, faults)
    for keys, sentence in cross_faults(settings):
        # A setting that is itself at fault stands at its default here: what it makes together with others is unknown.
        if not bad.intersection(keys):
            place = given[keys[0]].place if keys[0] in given else keys[0]
            faults.append(f"{place} {sentence}")
    if faults:
        raise SettingsError(faults)
    return settings


def _fit_all(given: dict[str, Given], faults: list[str]) -> tuple[dict[str, object], set[str]]:
    """Values that fit, and the keys of those that do not; each fault is appended."""
    values: dict[str, object] = {}
    bad: set[str] = set()
    free = {key.removeprefix(f"{FREE}."): one for key, one in given.items() if key.startswith(f"{FREE}.")}
    for key, one in given.items():
        if key.startswith(f"{FREE}."):
            continue
        if key not in all_fields():
            faults.append(f"{one.place} {remedy(key)}")
            continue
        try:
            values[key] = fit(all_fields()[key], one.value, one.is_text)
        except Misfit as error:
            faults.append(f"{one.place} {error}")
            bad.add(key)
    if free:
        fitted, trainer_faults = fit_trainer(free)
        values |= {f"{FREE}.{name}": value for name, value in fitted.items()}
        faults += trainer_faults
    return values, bad


def _build(values: dict[str, object], faults: list[str]) -> Settings:
    """The settings object; pydantic has the last word."""
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if name:
            nested.setdefault(section, {})[name] = value
        else:
            nested[section] = value
    try:
        return Settings(**nested)
    except ValidationError as error:
        for fault in error.errors():
            place = ".".join(str(part) for part in fault["loc"])
            faults.append(f"{place} is {fault['input']!r}: {fault['msg']}")
        raise SettingsError(faults) from error
