"""Files of an adapter's folder looked at before PEFT takes them: a stranger may have written them.

In: the folder. Out: the contents of adapter_config.json and fitune.json, or `ModelError` with the file, the value and
what is meant. Torch is not imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fitune.errors import ModelError
from fitune.models.weight_files.safetensors_check import check_files, read_json

CONFIG, FACTS = "adapter_config.json", "fitune.json"
LARGEST_RANK = 65_536


def checked_config(folder: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json.

    Raises:
        ModelError: it is absent or damaged, of another kind than LoRA, or has values that no LoRA has.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(f"{folder} holds no adapter: it has no {CONFIG}")
    config = _object(path)
    if config.get("peft_type") != "LORA":
        raise ModelError(f"the adapter in {folder} is of kind {config.get('peft_type')}; fitune opens and trains LoRA")
    if config.get("megatron_config"):
        raise ModelError(f"{path} has megatron_config, by which PEFT would import the module it names; take it out")
    for name, (fits, meant) in CONFIG_VALUES.items():
        if not fits(config.get(name)):
            raise ModelError(f"{path} says {name} is {config.get(name)!r:.60}; {meant} is meant")
    return config


def checked_facts(folder: Path) -> dict[str, Any] | None:
    """fitune.json, or None where PEFT alone made the adapter.

    Raises:
        ModelError: it is damaged, or has values that cannot be meant.
    """
    path = folder / FACTS
    if not path.exists():
        return None
    facts = _object(path)
    base = facts.get("base")
    for name, value, (fits, meant) in (
        ("base", base, _MAPPING),
        *((f"base.{name}", base.get(name), kind) for name, kind in BASE_VALUES.items() if isinstance(base, dict)),
        *((name, facts.get(name), kind) for name, kind in FACT_VALUES.items()),
    ):
        if not fits(value):
            raise ModelError(f"{path} says {name} is {value!r:.60}; {meant} is meant")
    return facts


def check_adapter_files(folder: Path) -> None:
    """Raises ModelError for pipes, links and folders in a file's place, and for JSON that cannot be read."""
    check_files(folder)
    checked_config(folder)
    checked_facts(folder)


def _object(path: Path) -> dict[str, Any]:
    found = read_json(path)
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__} where an object belongs")
    return found


def _is_rank(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_RANK


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _maybe(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or fits(value)


def _is_template(value: object) -> bool:
    return isinstance(value, dict) and {"origin", "end_of_turn", "added_tokens", "sha256"} <= value.keys()


def _each(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, Mapping) and all(map(fits, value.values()))


Kind = tuple[Callable[[object], bool], str]
_MAPPING: Kind = (lambda value: isinstance(value, dict), "an object with the base's name and revision")
CONFIG_VALUES: dict[str, Kind] = {
    "r": (_is_rank, f"a whole number from 1 to {LARGEST_RANK:,}"),
    "rank_pattern": (_maybe(_each(_is_rank)), f"an object of whole numbers from 1 to {LARGEST_RANK:,}"),
    "lora_alpha": (_is_number, "a number"),
    "alpha_pattern": (_maybe(_each(_is_number)), "an object of numbers"),
    "lora_dropout": (_maybe(_is_number), "a number"),
    "target_modules": (lambda value: value is None or isinstance(value, str) or _is_texts(value), "a list of names"),
    "modules_to_save": (_maybe(_is_texts), "a list of names"),
    "bias": (lambda value: value in (None, "none", "all", "lora_only"), "none, all or lora_only"),
    "base_model_name_or_path": (lambda value: value is None or isinstance(value, str), "a name"),
}
BASE_VALUES: dict[str, Kind] = {
    "name": (lambda value: isinstance(value, str) and bool(value), "a name"),
    "revision": (lambda value: value is None or isinstance(value, str), "a revision or null"),
}
FACT_VALUES: dict[str, Kind] = {
    "template": (_maybe(_is_template), "an object with origin, end_of_turn, added_tokens and sha256"),
    "quantization": (_maybe(lambda value: isinstance(value, dict)), "an object or null"),
    "merged": (
        _maybe(lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value)),
        "a list of objects",
    ),
    "embedding_rows": (_maybe(lambda value: isinstance(value, int)), "a whole number"),
    "reward": (_maybe(_each(_is_number)), "an object of numbers"),
    "init": (_maybe(lambda value: isinstance(value, str)), "a name"),
}
