"""Runs side by side, as plain dicts: what `fitune runs list|show|compare` prints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from fitune.earlier_names import stored_with_new_names
from fitune.errors import RunError
from fitune.runs import manifest as manifests
from fitune.runs.checkpoints import complete_checkpoints, step_of
from fitune.runs.run_folder import MANIFEST, RunFolder, read_rows


def find_run(name: str, root: str | Path = "runs") -> Path:
    """The folder of a run given by name below ``root`` or by path.

    Raises:
        RunError: no such run.
    """
    for path in (Path(name), Path(root) / name):
        if (path / MANIFEST).is_file():
            return path
    return RunFolder.open(Path(root) / name).path


def list_runs(root: str | Path = "runs") -> list[dict[str, Any]]:
    """One summary a run below ``root``, the newest first; damaged ones say so."""
    found = []
    for path in Path(root).glob(f"*/{MANIFEST}"):
        try:
            found.append(summary(path.parent))
        except RunError as error:
            found.append({"name": path.parent.name, "path": str(path.parent), "status": "damaged", "error": str(error)})
    return sorted(found, key=lambda run: (run.get("started") or "", run["name"]), reverse=True)


def summary(path: Path) -> dict[str, Any]:
    """name, path, status, started, ended, model, data, method, tuning, steps, step, loss, best, before, after, memory."""
    manifest = manifests.read(path / MANIFEST)
    rows = read_rows(path / "metrics.jsonl")
    trained = [row for row in rows if row.get("kind") == "train"]
    results = manifest.get("results", {})
    return {
        "name": path.name,
        "path": str(path),
        **{key: manifest.get(key) for key in ("status", "started", "ended", "method", "tuning")},
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


def memory_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """Peak memory as it was planned and as it was measured: {figure: {predicted, measured, difference}} in bytes.

    A figure that was measured and not planned has no prediction.
    """
    memory = manifest.get("memory", {})
    predicted, measured = memory.get("predicted", {}), memory.get("measured", {})
    found: dict[str, Any] = {}
    for key in ("allocated_bytes", "reserved_bytes", "resident_growth_bytes"):
        if key in measured:
            found[key] = {"measured": measured[key]}
            if key in predicted:
                difference = (measured[key] - predicted[key]) / max(predicted[key], 1)
                found[key] = {"predicted": predicted[key], **found[key], "difference": difference}
    return found


def show_run(path: Path) -> dict[str, Any]:
    """Everything about one run: summary, manifest, settings, metrics, checkpoints."""
    run = RunFolder.open(path)
    return {
        "summary": summary(path),
        "manifest": manifests.read(run.manifest),
        "settings": read_settings(run),
        "metrics": read_rows(run.metrics),
        "checkpoints": [step_of(folder) for folder in complete_checkpoints(run.checkpoints)],
    }


def compare_runs(paths: list[Path]) -> dict[str, Any]:
    """What differs between runs.

    Returns:
        names; settings: dotted key → one value a run, only the keys that differ; versions and data likewise;
        results: metric → one value a run (after training); losses: one list of (step, loss) a run.
    """
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


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys: ``{"a": {"b": 1}}`` → ``{"a.b": 1}``."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def differing(columns: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Keys whose values are not the same in every dict, with the value of each."""
    keys = list(dict.fromkeys(key for column in columns for key in column))
    rows = {key: [column.get(key) for column in columns] for key in keys}
    return {key: values for key, values in rows.items() if any(value != values[0] for value in values)}
