"""Runs side by side, as plain dicts: what `fitune runs list|show|compare` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import yaml

from fitune.earlier_names import stored_with_new_names
from fitune.errors import RunError
from fitune.runs import manifest as manifests
from fitune.runs.checkpoints import complete_checkpoints, step_of
from fitune.runs.run_folder import MANIFEST, RunFolder, read_rows


class MemoryFigure(TypedDict):
    """A peak in bytes; difference: (measured − predicted) / predicted."""

    predicted: NotRequired[int]
    measured: int
    difference: NotRequired[float]


class Summary(TypedDict):
    """A run in a line; None where its manifest says nothing yet."""

    name: str
    path: str
    status: str | None
    started: str | None
    ended: str | None
    method: str | None
    tuning: str | None
    model: str | None
    data: str | None
    steps: object
    step: int
    loss: float | None
    best_step: int | None
    before: dict[str, float] | None
    after: dict[str, float] | None
    memory: dict[str, MemoryFigure]


class Damaged(TypedDict):
    """A run whose manifest cannot be read; status: damaged."""

    name: str
    path: str
    status: str
    error: str


class ShownRun(TypedDict):
    """Everything about one run; metrics: the rows of metrics.jsonl, checkpoints: their steps."""

    summary: Summary
    manifest: manifests.Manifest
    settings: dict[str, Any]
    metrics: list[dict[str, Any]]
    checkpoints: list[int]


class Comparison(TypedDict):
    """Runs side by side, one value a run in the order of ``names``.

    settings, versions and data have only the keys that differ, dotted; results: metric → its values after training;
    losses: one list of (step, loss) a run.
    """

    names: list[str]
    settings: dict[str, list[object]]
    versions: dict[str, list[object]]
    data: dict[str, list[object]]
    results: dict[str, list[float | None]]
    losses: list[list[tuple[int, float]]]


def find_run(name: str, root: str | Path = "runs") -> Path:
    """The folder of a run given by name below ``root`` or by path.

    Raises:
        RunError: no such run.
    """
    for path in (Path(name), Path(root) / name):
        if (path / MANIFEST).is_file():
            return path
    return RunFolder.open(Path(root) / name).path


def list_runs(root: str | Path = "runs") -> list[Summary | Damaged]:
    """One summary a run below ``root``, the newest first; damaged ones say so."""
    found: list[Summary | Damaged] = []
    for path in Path(root).glob(f"*/{MANIFEST}"):
        try:
            found.append(summary(path.parent))
        except RunError as error:
            found.append({"name": path.parent.name, "path": str(path.parent), "status": "damaged", "error": str(error)})
    return sorted(found, key=lambda run: (run.get("started") or "", run["name"]), reverse=True)


def summary(path: Path) -> Summary:
    """What the manifest and the last logged training step tell of a run."""
    manifest = manifests.read(path / MANIFEST)
    rows = read_rows(path / "metrics.jsonl")
    trained = [row for row in rows if row.get("kind") == "train"]
    results = manifest.get("results", {})
    return {
        "name": path.name,
        "path": str(path),
        "status": RunFolder(path).status(),
        "started": manifest.get("started"),
        "ended": manifest.get("ended"),
        "method": manifest.get("method"),
        "tuning": manifest.get("tuning"),
        "model": manifest.get("model", {}).get("name"),
        "data": manifest.get("data", {}).get("train"),
        "steps": manifest.get("training", {}).get("steps"),
        "step": trained[-1]["step"] if trained else 0,
        "loss": trained[-1]["loss"] if trained else None,
        "best_step": results.get("best_step"),
        "before": results.get("before"),
        "after": results.get("after"),
        "memory": memory_of(manifest),
    }


def memory_of(manifest: manifests.Manifest) -> dict[str, MemoryFigure]:
    """Peak memory as it was planned and as it was measured, figure by figure.

    A figure that was measured and not planned has no prediction.
    """
    memory = manifest.get("memory", {})
    predicted, measured = memory.get("predicted", {}), memory.get("measured", {})
    found: dict[str, MemoryFigure] = {}
    for key in ("allocated_bytes", "reserved_bytes", "resident_growth_bytes"):
        was, planned = measured.get(key), predicted.get(key)
        if was is not None and planned is not None:
            found[key] = {"predicted": planned, "measured": was, "difference": (was - planned) / max(planned, 1)}
        elif was is not None:
            found[key] = {"measured": was}
    return found


def show_run(path: Path) -> ShownRun:
    """Everything about one run: summary, manifest, settings, metrics, checkpoints."""
    run = RunFolder.open(path)
    return {
        "summary": summary(path),
        "manifest": manifests.read(run.manifest),
        "settings": read_settings(run),
        "metrics": read_rows(run.metrics),
        "checkpoints": [step_of(folder) for folder in complete_checkpoints(run.checkpoints)],
    }


def compare_runs(paths: list[Path]) -> Comparison:
    """What differs between runs."""
    runs = [show_run(path) for path in paths]
    metrics = sorted({name for run in runs for name in (run["summary"]["after"] or {})})
    return {
        "names": [run["summary"]["name"] for run in runs],
        "settings": differing([flat(run["settings"]) for run in runs]),
        "versions": differing([run["manifest"].get("versions", {}) for run in runs]),
        "data": differing([flat(run["manifest"].get("data", {}).get("hashes", {})) for run in runs]),
        "results": {name: [(run["summary"]["after"] or {}).get(name) for run in runs] for name in metrics},
        "losses": [
            [(row["step"], row["loss"]) for row in run["metrics"] if row.get("kind") == "train"] for run in runs
        ],
    }


def read_settings(run: RunFolder) -> dict[str, Any]:
    """The run's settings as they were written, by today's names.

    Raises:
        RunError: the file is damaged.
        SettingsError: a setting is in it by its earlier name and by today's.
    """
    try:
        stored = yaml.safe_load(run.settings.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise RunError(f"{run.settings} is damaged: {error}") from error
    return stored_with_new_names(stored, run.settings)


def flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested dicts as dotted keys: ``{"a": {"b": 1}}`` → ``{"a.b": 1}``."""
    found: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def differing(columns: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Keys whose values are not the same in every dict, with the value of each."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = {key: [column.get(key) for column in columns] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}
