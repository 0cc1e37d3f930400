"""`--gpus 2`: SIGTERM saves and ends, a rank that is killed ends the other and is named; resumed on 1, 2 and 3 ranks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
import yaml
from on_ranks import check_equal, run_on

import fitune
from fitune.runs import manifest as manifests
from fitune.runs.checkpoints import complete_checkpoints, step_of
from fitune.runs.run_folder import RunFolder, read_rows

pytestmark = pytest.mark.slow
STEPS = 80


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fitune.cli", "train", *words, "--gpus", "2"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_for_step(child: subprocess.Popen[str], run: RunFolder, step: int) -> None:
    patience = time.monotonic() + 120
    while max([row["step"] for row in read_rows(run.metrics)], default=0) < step:
        assert child.poll() is None, f"ended early: {child.stderr.read()[-2000:]}"
        assert time.monotonic() < patience
        time.sleep(0.01)


def ended(child: subprocess.Popen[str]) -> tuple[int, str]:
    try:
        _, said = child.communicate(timeout=90)
    finally:
        for one in [*psutil.Process(child.pid).children(recursive=True), child] if child.poll() is None else []:
            one.kill()
    return child.returncode, said


def numbers(run: RunFolder) -> list[dict[str, object]]:
    """What must be equal to the last bit."""
    exact = ("step", "kind", "loss", "learning_rate", "grad_norm", "epoch", "tokens", "exact_match")
    return [{name: row[name] for name in exact if name in row} for row in read_rows(run.metrics)]


def test_signals_and_deaths_then_resumed(tmp_path, job):
    recipe = tmp_path / "recipe.yaml"
    changed = {"train__max_steps": STEPS, "train__lr_scheduler": "constant", "run__checkpoint_steps": 5}
    changed |= {"train__learning_rate": 1e-3}
    changed |= {"eval__every_steps": 60, "eval__samples": 0}
    one = job(tmp_path / "runs", "one", **changed)
    recipe.write_text(yaml.safe_dump(one["settings"]))
    run = RunFolder(tmp_path / "runs" / "one")

    child = start(str(recipe))
    wait_for_step(child, run, 7)
    child.send_signal(signal.SIGTERM)
    status, said = ended(child)
    assert status == 143, said[-2000:]
    assert manifests.read(run.manifest)["status"] == "interrupted"
    stopped = step_of(complete_checkpoints(run.checkpoints)[-1])
    assert 7 <= stopped < STEPS and "continue with" in said

    child = start("--resume", str(run.path))
    wait_for_step(child, run, stopped + 7)
    (victim,) = [one for one in psutil.Process(child.pid).children(recursive=True) if one.environ().get("RANK") == "1"]
    victim.kill()
    began = time.monotonic()
    status, said = ended(child)
    assert status == 1 and time.monotonic() - began < 60
    assert f"rank 1 (process {victim.pid}) was ended by SIGKILL" in said

    for count in (1, 3):
        shutil.copytree(run.path, tmp_path / f"runs-{count}" / "one")
    whole = job(tmp_path / "whole", "one", **changed)
    assert [one["status"] for one in run_on(2, [{"resume": str(run.path)}, whole])[0]] == ["finished"] * 2
    assert numbers(run) == numbers(RunFolder(tmp_path / "whole" / "one"))
    fitune.train(resume=tmp_path / "runs-1" / "one")
    run_on(3, [{"resume": str(tmp_path / "runs-3" / "one")}])
    for count in (1, 3):
        check_equal(run.path, tmp_path / f"runs-{count}" / "one", rel=1e-3)
