"""The run folder: refusals, the lock, the logs."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

from fitune.errors import RunError
from fitune.runs import manifest as manifests
from fitune.runs.compare import list_runs
from fitune.runs.run_folder import RunFolder, read_rows


def write_run(path):
    run = RunFolder.create(path)
    run.manifest.write_text("{}")
    run.settings.write_text("method: sft\n")
    return run


def test_a_folder_with_another_run_is_refused_with_the_way_to_resume(tmp_path):
    write_run(tmp_path / "one")
    with pytest.raises(RunError, match=r"holds another run; .*fitune train --resume .*one"):
        RunFolder.create(tmp_path / "one")


def test_a_folder_with_anything_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RunError, match="not empty"):
        RunFolder.create(tmp_path)
    with pytest.raises(RunError, match="is a file"):
        RunFolder.create(tmp_path / "thesis.txt")


def test_opening_what_is_no_run_names_the_runs_there(tmp_path):
    write_run(tmp_path / "pig")
    with pytest.raises(RunError, match=r"runs in .*: pig"):
        RunFolder.open(tmp_path / "pgi")


def test_a_living_process_keeps_its_run(tmp_path):
    run = write_run(tmp_path / "one")
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (run.path / "run.lock").write_text(json.dumps({"pid": other.pid, "host": platform.node()}))
        with pytest.raises(RunError, match=f"written by process {other.pid}"), run.locked():
            pass
    finally:
        other.kill()
        other.wait()


@pytest.mark.parametrize("left", ["dead", "empty"])
def test_a_lock_left_behind_is_taken_over(tmp_path, left):
    run = write_run(tmp_path / "one")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (run.path / "run.lock").write_text(json.dumps({"pid": dead.pid, "host": platform.node()}) if left == "dead" else "")
    with run.locked():
        assert json.loads((run.path / "run.lock").read_text())["pid"] == os.getpid()
    assert not (run.path / "run.lock").exists()


def test_a_lock_of_another_machine_is_not_guessed_about(tmp_path):
    run = write_run(tmp_path / "one")
    (run.path / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(RunError, match="on elsewhere; if that is over, delete"), run.locked():
        pass


def test_a_resumed_run_forgets_the_rows_it_will_write_again(tmp_path):
    run = write_run(tmp_path / "one")
    for step in range(1, 6):
        run.log_metrics({"step": step, "kind": "train", "loss": 1 / step})
    with run.metrics.open("a") as file:
        file.write('{"step": 6, "ki')  # cut short by a killed process
    assert [row["step"] for row in read_rows(run.metrics)] == [1, 2, 3, 4, 5]
    run.forget_after(3)
    run.log_metrics({"step": 4})
    assert [row["step"] for row in read_rows(run.metrics)] == [1, 2, 3, 4]
    assert read_rows(run.metrics)[2]["loss"] == 1 / 3


def test_a_run_whose_process_is_gone_is_dead(tmp_path):
    run = RunFolder.create(tmp_path / "runs" / "a")
    run.write_settings({})
    manifests.write(run.manifest, {"status": "running", "data": {"exclude": []}})
    assert run.status() == "dead" and list_runs(tmp_path / "runs")[0]["status"] == "dead"
    with run.locked():
        assert run.status() == "running"
        held = json.loads((run.path / "run.lock").read_text())
        assert (run.path / "run.lock").stat().st_size >= 64 * 2**10
    (run.path / "run.lock").write_text(json.dumps({**held, "started": 1}))  # its number belongs to another by now
    assert run.status() == "dead"
    (run.path / "run.lock").write_text(json.dumps({**held, "host": "elsewhere"}))
    assert run.status() == "running"  # who knows
    manifests.update(run.manifest, status="interrupted")
    assert run.status() == "interrupted"


def test_the_end_is_noted_on_a_full_disk_with_what_the_lock_held(tmp_path, monkeypatch):
    run = RunFolder.create(tmp_path / "a")
    manifests.write(run.manifest, {"status": "running", "data": {"exclude": []}})
    with run.locked():
        run.note_end("failed", error="full")
        assert (run.path / "run.lock").stat().st_size < 200
    assert manifests.read(run.manifest)["error"] == "full" and run.status() == "failed"
