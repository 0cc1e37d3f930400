"""fitune: fine-tune the largest open LLM that fits your hardware, know that it fits before you start.

The public API. Names are loaded at first use: `import fitune` imports neither torch nor transformers.

    import fitune

    result = fitune.train(fitune.load_settings("run.yaml"))
    print(result.folder, result.after)
    fitune.export(str(result.folder), "gguf", gguf_type="q8_0")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitune.config.sections import Settings
    from fitune.config.settings_loader import load_settings
    from fitune.errors import (
        DataError,
        DoesNotFit,
        FituneError,
        MissingExtra,
        ModelError,
        PlanError,
        RewardError,
        RunError,
        SettingsError,
        TrainingHalted,
    )
    from fitune.evaluation.inference_model import open_target
    from fitune.exporting.export import export
    from fitune.runs.compare import compare_runs, list_runs, show_run
    from fitune.training.run import RunResult, train

_HOME = {
    "Settings": "fitune.config.sections",
    "load_settings": "fitune.config",
    "RunResult": "fitune.training.run",
    "train": "fitune.training.run",
    "export": "fitune.exporting.export",
    "open_target": "fitune.evaluation.inference_model",
    "list_runs": "fitune.runs.compare",
    "show_run": "fitune.runs.compare",
    "compare_runs": "fitune.runs.compare",
    "FituneError": "fitune.errors",
    "SettingsError": "fitune.errors",
    "DataError": "fitune.errors",
    "ModelError": "fitune.errors",
    "RunError": "fitune.errors",
    "TrainingHalted": "fitune.errors",
    "RewardError": "fitune.errors",
    "PlanError": "fitune.errors",
    "DoesNotFit": "fitune.errors",
    "MissingExtra": "fitune.errors",
}

__all__ = [
    "DataError",
    "DoesNotFit",
    "FituneError",
    "MissingExtra",
    "ModelError",
    "PlanError",
    "RewardError",
    "RunError",
    "RunResult",
    "Settings",
    "SettingsError",
    "TrainingHalted",
    "compare_runs",
    "export",
    "list_runs",
    "load_settings",
    "open_target",
    "show_run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fitune' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
