"""`fitune runs list`: a line that tells runs apart."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from fitune.cli import cli
from fitune.console import stdout_console


def made(root: Path, name: str, **values: object) -> None:
    (root / name).mkdir(parents=True)
    manifest = {
        "status": "finished", "started": "2026-01-02T03:04:05Z", "method": "sft", "tuning": "lora",
        "model": {"name": "org/tiny"}, "data": {"train": "data/a.jsonl"}, "training": {"steps": 9}, **values,
    }  # fmt: skip
    (root / name / "manifest.json").write_text(json.dumps(manifest))
    (root / name / "settings.yaml").write_text("{}")
    (root / name / "metrics.jsonl").write_text(json.dumps({"step": 9, "kind": "train", "loss": 0.5}) + "\n")


def test_runs_are_told_apart_and_dead_ones_are_called_so(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    stdout_console.cache_clear()  # the width is read once
    made(tmp_path, "good", results={"before": {"loss": 3.0}, "after": {"loss": 1.25}})
    made(tmp_path, "killed", status="running")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "manifest.json").write_text("{")
    lines = CliRunner().invoke(cli, ["runs", "list", "--runs", str(tmp_path)]).stdout.splitlines()
    by_name = {line.split()[0]: line for line in lines}
    assert by_name["good"].split()[1:] == "finished sft tiny a.jsonl 9/9 loss 3 → 1.25 2026-01-02 03:04".split()
    assert "dead" in by_name["killed"] and "loss of the last step 0.5" in by_name["killed"]
    assert "damaged" in by_name["odd"]
