"""Settings that were renamed: the earlier names are accepted until the release that removes them.

In: settings by the names that a file, a command line, a call or a stored run has for them. Out: the same by today's names,
and a line for each earlier one. The table stands here and not beside the fields, because packages below the settings read
the settings that runs have stored. To end the support of a name, delete its line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from fitune.console import log
from fitune.errors import SettingsError

Value = TypeVar("Value")


@dataclass(frozen=True)
class Renamed:
    """Today's dotted name, and the version of fitune that no longer knows the earlier one."""

    new: str
    removed_in: str = "0.3.0"


RENAMED: dict[str, Renamed] = {
    "data.test": Renamed("data.eval"),
    "data.test_share": Renamed("data.eval_share"),
    "train.schedule": Renamed("train.lr_scheduler"),
    "train.warmup_share": Renamed("train.warmup_ratio"),
    "rl.answers": Renamed("rl.num_generations"),
    "rl.rows_at_once": Renamed("rl.generation_batch_size"),
    "rl.endless_reward": Renamed("rl.truncated_reward"),
    "rl.passes": Renamed("rl.num_iterations"),
    "rl.loss_over": Renamed("rl.loss_aggregation"),
    "rl.lam": Renamed("rl.gae_lambda"),
}
"""Earlier dotted name → `Renamed`."""


def new_name(key: str) -> str:
    """Today's name of a dotted key; a key that was not renamed is returned as it is."""
    return RENAMED[key].new if key in RENAMED else key


def tell(place: str, key: str) -> None:
    """Print the hint for an earlier name.

    Args:
        place: where it was written, the name included: ``run.yaml:3: rl.answers``, ``--rl.answers``.
    """
    renamed = RENAMED[key]
    log(f"{place} is now called {renamed.new}; fitune {renamed.removed_in} will not accept the old name")


def both_names(first: str, second: str, name: str) -> str:
    """The fault of a setting that is set by both names; ``first`` and ``second`` are the places."""
    return f"{first} and {second} are the same setting; keep {name}"


def with_new_names(given: Mapping[str, Value], place: str = "") -> dict[str, Value]:
    """Dotted keys by today's names, with a hint for each earlier one.

    Args:
        place: what stands before a name in a message, such as ``--``.

    Raises:
        SettingsError: a setting is set by both names.
    """
    found, earlier = _renamed(given, "", place)
    for key in earlier:
        tell(f"{place}{key}", key)
    return found


def section_with_new_names(section: str, given: Mapping[str, Value]) -> dict[str, Value]:
    """`with_new_names` for the names within one section."""
    found, earlier = _renamed(given, f"{section}.", "")
    for key in earlier:
        tell(key, key)
    return found


def stored_with_new_names(settings: Mapping[str, Any], place: object) -> dict[str, Any]:
    """The settings that a run has stored, nested by section, by today's names; one hint, once, names every earlier one.

    Args:
        place: the file.

    Raises:
        SettingsError: a setting is stored by both names.
    """
    found, earlier = dict(settings), []
    for section, values in settings.items():
        if isinstance(values, Mapping):
            found[section], some = _renamed(values, f"{section}.", f"{place}: ")
            earlier += some
    if earlier:
        _tell_once(str(place), tuple(earlier))
    return found


@cache
def _tell_once(place: str, earlier: tuple[str, ...]) -> None:
    pairs = ", ".join(f"{key} (now {RENAMED[key].new})" for key in earlier)
    first = min(RENAMED[key].removed_in for key in earlier)
    log(f"{place} has earlier names of settings: {pairs}; fitune {first} will not read them")


def _renamed(given: Mapping[str, Value], prefix: str, place: str) -> tuple[dict[str, Value], list[str]]:
    """(the same keys by today's names, the earlier dotted names that were among them)."""
    found: dict[str, Value] = {}
    written: dict[str, str] = {}
    for key, value in given.items():
        old = f"{prefix}{key}"
        name = new_name(old)
        if name in written:
            raise SettingsError([both_names(f"{place}{written[name]}", f"{place}{old}", name)])
        written[name] = old
        found[name.removeprefix(prefix)] = value
    return found, [old for name, old in written.items() if name != old]
