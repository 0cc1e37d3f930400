"""Run folders as `fitune train` leaves them, for the studio's tests."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fitune.config.sections import Settings
from fitune.studio.starting import child_command

HOST = "127.0.0.1:8765"
OWN_PAGE = {"origin": f"http://{HOST}"}
MakeRun = Callable[..., Path]


def write_run(folder: Path, rows: int = 20, status: str = "finished", **manifest: Any) -> Path:
    """A run folder with so many training rows and two evaluations."""
    folder.mkdir(parents=True)
    (folder / "settings.yaml").write_text(yaml.safe_dump(Settings().model_dump(mode="json")))
    facts = {
        "status": status,
        "started": "2026-11-29T08:00:00Z",
        "ended": None,
        "method": "sft",
        "tuning": "lora",
        "model": {"name": "org/tiny"},
        "data": {"train": "a.jsonl", "exclude": []},
        "training": {"steps": rows},
        "results": {"before": {"loss": 3.0, "exact_match": 0.0}, "after": {"loss": 1.0, "exact_match": 0.5}},
        "memory": {"predicted": {"allocated_bytes": 2**30}, "measured": {"allocated_bytes": 2**30 + 2**20}},
    }
    (folder / "manifest.json").write_text(json.dumps(facts | manifest))
    lines = [train_row(step) for step in range(1, rows + 1)]
    lines += [{"step": rows, "kind": "eval", "loss": 1.0, "exact_match": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    asked = {"row": 7, "asked": "the pig", "wanted": "ethay igpay", "stopped": True}
    samples = [
        {"step": 0, "moment": "before", "answer": "oink", **asked},
        {"step": rows, "moment": "after", "answer": "ethay pig", **asked},
    ]
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in samples))
    return folder


def train_row(step: int) -> dict[str, Any]:
    """A row as `RunLog` writes it."""
    return {
        "step": step, "kind": "train", "loss": 3 - step / 100, "learning_rate": 1e-4, "grad_norm": 1.5, "epoch": step / 20,
        "tokens": step * 100, "tokens_per_second": 250.0, "seconds": step * 0.5, "memory_bytes": 2**30,
    }  # fmt: skip


def hold(folder: Path, pid: int) -> None:
    """Lock a run as a process of this machine does."""
    (folder / "run.lock").write_text(json.dumps({"pid": pid, "host": platform.node()}))


def answers(monkeypatch: pytest.MonkeyPatch, *texts: str, status: int = 0) -> list[list[str]]:
    """Children that print these one after the other; returns the words that they were asked."""
    asked: list[list[str]] = []

    def command(words: list[str]) -> list[str]:
        asked.append(list(words))
        text = texts[min(len(asked), len(texts)) - 1]
        return [
            sys.executable,
            "-c",
            f"import sys; sys.{'stderr' if status else 'stdout'}.write({text!r}); sys.exit({status})",
        ]

    monkeypatch.setattr(child_command, "command", command)
    return asked
