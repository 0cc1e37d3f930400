"""Adapters on disk by name, and what their files tell without opening a weight. Torch is not imported.

In: a run's name or folder, or an adapter's folder. Out: its path, its LoRA options, its digest.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Required, TypedDict, cast

from fitune.errors import ModelError, RunError, did_you_mean
from fitune.models.weight_files.adapter_check import CONFIG, checked_config, checked_facts

if TYPE_CHECKING:
    from fitune.models.source import Origin

MERGED = "merged"
"""Folder, inside an adapter's, with copies of the adapters that its base has in its weights."""
WEIGHTS = "adapter_model.safetensors"


class TemplateFacts(TypedDict):
    """The chat template that an adapter was trained with."""

    origin: str
    end_of_turn: str | None
    added_tokens: list[str]
    sha256: str


class Facts(TypedDict, total=False):
    """fitune.json, beside a saved adapter.

    base and all that a base is recognised by; init: PEFT's start of A and B where it is none of its plain ones; merged:
    the adapters in the base's weights; reward: mean and scale of a reward model; combined, kind: how it was made.
    """

    base: Required[Origin]
    model_type: str
    hidden_size: int | None
    num_layers: int | None
    embedding_rows: int
    commit: str | None
    weights: str | None
    template: TemplateFacts
    precision: str
    quantization: Mapping[str, object] | None
    merged: list[dict[str, str]]
    init: str
    reward: dict[str, float]
    combined: list[dict[str, str | float]]
    kind: str


class LoraOptions(TypedDict):
    """The options of a LoRA in fitune's words."""

    rank: int
    alpha: float
    dropout: float
    targets: str | list[str]
    bias: str
    rslora: bool
    dora: bool
    modules_to_save: list[str]


def find_adapter(name: str, runs_folder: str | Path = "runs", setting: str = "") -> Path:
    """The folder of an adapter that is named by a run (name or folder) or by its own folder.

    Args:
        setting: the setting that names it, for the error.

    Raises:
        ModelError: there is none of that name.
        RunError: a run that trained in full, or has saved nothing yet.
    """
    said = f"{setting} is {name}: " if setting else ""
    for path in (Path(name).expanduser(), Path(runs_folder) / name):
        for folder in (path, path / "adapter"):
            if (folder / CONFIG).is_file():
                return folder
        if (path / "model").is_dir():
            raise RunError(f"{said}run {path} trained in full and has no adapter; name its model: {path / 'model'}")
        if (path / "manifest.json").is_file():
            raise RunError(f"{said}run {path} has saved no adapter yet; finish it with: fitune train --resume {path}")
    runs = Path(runs_folder)
    known = sorted(entry.parent.parent.name for entry in runs.glob(f"*/adapter/{CONFIG}"))
    near = did_you_mean(name, known)
    listed = f"; runs with an adapter in {runs}: {', '.join(known)}" if known and not near else ""
    raise ModelError(f'{said}there is no run or adapter "{name}"{near}{listed}')


def read_config(folder: Path) -> dict[str, Any]:
    """PEFT's adapter_config.json.

    Raises:
        ModelError: it is absent, damaged, or of another kind than LoRA.
    """
    return checked_config(folder)


def read_facts(folder: Path) -> Facts:
    """fitune.json of an adapter folder; for an adapter made by plain PEFT, what its own config tells.

    Raises:
        ModelError: the folder holds no adapter, or a damaged one.
    """
    config = read_config(folder)
    if (facts := checked_facts(folder)) is not None:
        return cast(Facts, facts)
    name = config.get("base_model_name_or_path")
    if not name:
        raise ModelError(f"{folder}/adapter_config.json does not name its base model")
    return {"base": {"name": name, "revision": config.get("revision")}}


def lora_options(folder: Path) -> LoraOptions:
    """The options of a saved LoRA in fitune's words, as `settings.lora` has them.

    Norms that were trained in full are among `modules_to_save`.

    Raises:
        ModelError: an adapter of another kind than LoRA.
    """
    config = read_config(folder)
    targets = config["target_modules"]
    if not isinstance(targets, str):  # experts by the names of their parameters, as lora.targets has them
        fused = {".".join(name.split(".")[-2:]) for name in config.get("target_parameters") or ()}
        targets = sorted({*targets, *fused})
    return {
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "dropout": config.get("lora_dropout", 0.0),
        "targets": targets,
        "bias": config.get("bias", "none"),
        "rslora": config.get("use_rslora", False),
        "dora": config.get("use_dora", False),
        "modules_to_save": list(config.get("modules_to_save") or ()),
    }


def merged_facts(folders: Sequence[Path]) -> list[dict[str, str]]:
    """For fitune.json: the adapters that were merged into a base, and where they came from."""
    return [{"from": str(folder.resolve()), "sha256": digest(folder)} for folder in folders]


def refuse_other_merges(first: Path, second: Path) -> None:
    """Raises ModelError when two adapters were trained over different merged bases: they cannot lie side by side."""
    standing_on = [[digest(folder) for folder in merged_inside(one)] for one in (first, second)]
    if standing_on[0] != standing_on[1]:
        raise ModelError(
            f"{first} and {second} were trained over bases with different adapters merged in ({len(standing_on[0])} and "
            f"{len(standing_on[1])}); open them one at a time"
        )


def copy_merged(merged: Sequence[dict[str, str]], folder: Path) -> None:
    """Put copies of the merged adapters into a new adapter's folder."""
    for place, one in enumerate(merged):
        shutil.copytree(
            Path(one["from"]).expanduser(), folder / MERGED / str(place), ignore=shutil.ignore_patterns(MERGED)
        )


def merged_inside(folder: Path) -> list[Path]:
    """The adapters that the one in ``folder`` stands on, in the order in which they were merged."""
    count = len(_merged(folder))
    found = [folder / MERGED / str(place) for place in range(count)]
    if missing := [path for path in found if not path.is_dir()]:
        raise ModelError(
            f"the adapter in {folder} was trained over a base with {count} adapters merged in, and {missing[0]} is not "
            "there; copy the whole folder"
        )
    return found


def _merged(folder: Path) -> list[dict[str, str]]:
    return (checked_facts(folder) or {}).get("merged") or []


def digest(folder: Path) -> str:
    """SHA-256 of the adapter's weights, by which it is known again."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; pickled adapters are not loaded")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
