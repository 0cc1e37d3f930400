"""benchmarks/gpu/run.sh: its dry run works, and a step that hangs or fails is written down and passed over."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("gpu_run", SCRIPTS / "run.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_run"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_run"]


def test_a_step_that_hangs_or_fails_is_passed_over(script: Any, tmp_path: Path):
    def step(name: str, code: str, seconds: float) -> Any:
        return script.Step(name, (sys.executable, "-c", code), seconds)

    steps = [
        step("hangs", "print('{\"a\": 1}', flush=True); import time; time.sleep(60)", 1.5),
        step("fails", "raise SystemExit('no such card')", 20),
        step("works", "print('{\"b\": 2}'); print('words')", 20),
    ]
    assert script.run(steps, tmp_path / "out.jsonl", True) == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == ["hangs", "hangs", "fails", "works"]
    assert rows[0]["a"] == 1 and "limit of 2 s" in rows[1]["failed"] and rows[3]["b"] == 2
    assert rows[2]["failed"] == "exit status 1" and "no such card" in rows[2]["tail"]
    assert all({"card", "driver", "versions", "at_s"} <= row.keys() for row in rows)
    assert "words" in (tmp_path / "out.log").read_text()


def test_verdicts_of_pytest_are_read(script: Any):
    line = "tests/gpu/test_layers.py::test_packed[cuda-torch.float32] PASSED                  [ 12%]\n"
    assert script.parsed(line) == {
        "test": "tests/gpu/test_layers.py::test_packed[cuda-torch.float32]",
        "outcome": "passed",
    }
    reason = script.parsed("FAILED tests/gpu/test_layers.py::test_packed[cuda] - AssertionError: far\n")
    assert reason == {
        "test": "tests/gpu/test_layers.py::test_packed[cuda]",
        "outcome": "reason",
        "reason": "AssertionError: far",
    }


def test_the_steps_fit_into_ten_minutes(script: Any):
    assert sum(step.seconds for step in script.steps_of(dry=False)) <= 570
    assert [step.name for step in script.steps_of(dry=False)][:4] == [step.name for step in script.steps_of(dry=True)]


@pytest.mark.slow
def test_the_dry_run(tmp_path: Path):
    out = tmp_path / "gpu.jsonl"
    command = [str(SCRIPTS / "run.sh"), "--dry-run", "--out", str(out), "--only", "speed", "memory", "context"]
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(command, env=environment, check=True, timeout=280, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert {row["step"] for row in rows} == {"speed", "memory", "context"}
    assert not any("failed" in row or "error" in row for row in rows)
    assert {"fitune-groups", "trl-dropout"} <= {row.get("kind") for row in rows}
    assert any(row.get("predicted_allocated_bytes", 0) > 2**20 for row in rows)
    assert any(row.get("said_to_fit") and row["ran"] for row in rows)
