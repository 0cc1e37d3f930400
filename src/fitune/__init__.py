"""fitune: fine-tune the largest open LLM that fits your hardware, know that it fits before you start.

The public API. Names are loaded at first use: `import fitune` imports neither torch nor transformers.

    import fitune

    fitune.check_data("my.jsonl")
    run = fitune.train(model="HuggingFaceTB/SmolLM2-360M-Instruct", data="my.jsonl")
    fitune.generate(run, "The pig eats.")
    fitune.export(str(run.folder), "gguf", gguf_type="q8_0")

`help(fitune.train)` and docs/api.md explain each function; every setting of the command line is a keyword.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitune.api.ask_calls import Chat, chat, evaluate, generate, load
    from fitune.api.data_call import DataCheck, check_data
    from fitune.api.plan_call import MemoryPlan, plan
    from fitune.api.train_call import train
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
    from fitune.evaluation.evaluate import Evaluation
    from fitune.evaluation.inference_model import Target, open_target
    from fitune.exporting.export import export
    from fitune.runs.compare import compare_runs, list_runs, show_run
    from fitune.runs.run_result import RunResult

_HOME = {
    "Chat": "fitune.api.ask_calls",
    "chat": "fitune.api.ask_calls",
    "evaluate": "fitune.api.ask_calls",
    "generate": "fitune.api.ask_calls",
    "load": "fitune.api.ask_calls",
    "DataCheck": "fitune.api.data_call",
    "check_data": "fitune.api.data_call",
    "MemoryPlan": "fitune.api.plan_call",
    "plan": "fitune.api.plan_call",
    "train": "fitune.api.train_call",
    "Settings": "fitune.config.sections",
    "load_settings": "fitune.config.settings_loader",
    "Evaluation": "fitune.evaluation.evaluate",
    "Target": "fitune.evaluation.inference_model",
    "open_target": "fitune.evaluation.inference_model",
    "export": "fitune.exporting.export",
    "compare_runs": "fitune.runs.compare",
    "list_runs": "fitune.runs.compare",
    "show_run": "fitune.runs.compare",
    "RunResult": "fitune.runs.run_result",
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
    "Chat",
    "DataCheck",
    "DataError",
    "DoesNotFit",
    "Evaluation",
    "FituneError",
    "MemoryPlan",
    "MissingExtra",
    "ModelError",
    "PlanError",
    "RewardError",
    "RunError",
    "RunResult",
    "Settings",
    "SettingsError",
    "Target",
    "TrainingHalted",
    "chat",
    "check_data",
    "compare_runs",
    "evaluate",
    "export",
    "generate",
    "list_runs",
    "load",
    "load_settings",
    "open_target",
    "plan",
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
