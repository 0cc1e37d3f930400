"""A run that was killed, interrupted or left half-written goes on as if nothing had happened."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from click.testing import CliRunner

import fitune
from fitune.cli import cli
from fitune.errors import RunError, StorageError
from fitune.runs import manifest as manifests
from fitune.runs import run_folder
from fitune.runs.checkpoints import complete_checkpoints, is_complete, step_of
from fitune.runs.run_folder import RunFolder, read_rows
from fitune.trainers.callbacks import RunLog
from fitune.training.resume import check_same_settings

LONG = {"train__epochs": 6, "eval__every_steps": 8, "run__checkpoint_steps": 3, "lora__dropout": 0.1}  # 24 steps

# The child trains; `{before}` may change the code that it runs. Threads as in the parent: sums depend on them.
CHILD = """
import os, signal, sys, time
import torch
torch.set_num_threads({threads})
import fitune
from fitune.runs import checkpoints
from fitune.trainers import base as rooms
{before}
if __name__ == "__main__":
    sys.exit(fitune.train(fitune.Settings.model_validate_json(sys.argv[1])).exit_code)
"""

SLOW_STEPS = """
step = rooms.FituneTrainer.training_step
rooms.FituneTrainer.training_step = lambda *args, **kwargs: (time.sleep(0.1), step(*args, **kwargs))[1]
"""

DIE_AFTER_LOGGING_STEP_11 = """
from fitune.trainers import callbacks
log = callbacks.RunLog.on_log
def die(self, args, state, control, **kwargs):
    log(self, args, state, control, **kwargs)
    if state.global_step == 11:
        os.kill(os.getpid(), signal.SIGKILL)
callbacks.RunLog.on_log = die
"""

DIE_WHILE_SAVING = """
mark = checkpoints.mark_complete
def die(folder):
    if folder.name == "checkpoint-9":
        os.kill(os.getpid(), signal.SIGKILL)
    mark(folder)
checkpoints.mark_complete = die
"""


def start(settings, tmp_path, before):
    script = tmp_path / "child.py"
    script.write_text(CHILD.format(threads=torch.get_num_threads(), before=before))
    return subprocess.Popen(
        [sys.executable, str(script), settings.model_dump_json()], stderr=subprocess.PIPE, text=True, env=os.environ
    )


def wait_for_step(child, run, step):
    """Until the child has logged ``step``; it must still be at work then."""
    patience = time.monotonic() + 120
    while max([row["step"] for row in read_rows(run.metrics)], default=0) < step:
        assert child.poll() is None, f"the child ended early: {child.stderr.read()}"
        assert time.monotonic() < patience, "the child logs nothing"
        time.sleep(0.02)


def numbers(run):
    """What must be equal to the last bit: everything logged but times and memory."""
    exact = ("step", "kind", "loss", "learning_rate", "grad_norm", "epoch", "tokens", "exact_match", "chrf")
    return [{name: row[name] for name in exact if name in row} for row in read_rows(run.metrics)]


@pytest.fixture(scope="module")
def uninterrupted():
    """Numbers of the whole run, made once."""
    return {}


def expected(uninterrupted, settings_of, tmp_path):
    if "numbers" not in uninterrupted:
        result = fitune.train(settings_of(run__name="whole", **LONG))
        run = RunFolder.open(result.folder)
        uninterrupted.update(numbers=numbers(run), samples=read_rows(run.samples))
    return uninterrupted


def check_equal(result, uninterrupted):
    run = RunFolder.open(result.folder)
    assert numbers(run) == uninterrupted["numbers"]
    assert read_rows(run.samples) == uninterrupted["samples"]
    assert result.status == "finished" and (run.adapter / "adapter_model.safetensors").is_file()
    assert manifests.read(run.manifest)["status"] == "finished"


@pytest.mark.slow
def test_kill_9_then_resume_equals_the_uninterrupted_run(tmp_path, settings_of, uninterrupted):
    wanted = expected(uninterrupted, settings_of, tmp_path)
    settings = settings_of(**LONG)
    run = RunFolder(tmp_path / "runs" / "one")
    child = start(settings, tmp_path, DIE_AFTER_LOGGING_STEP_11)
    child.communicate(timeout=180)
    assert child.returncode == -signal.SIGKILL
    assert manifests.read(run.manifest)["status"] == "running" and run.status() == "dead"
    assert read_rows(run.metrics)[-1]["step"] > step_of(
        complete_checkpoints(run.checkpoints)[-1]
    )  # steps to take again
    check_equal(fitune.train(resume=run.path), wanted)
    assert manifests.read(run.manifest)["resumed"][0]["from_step"] == 9


@pytest.mark.slow
def test_killed_while_a_checkpoint_was_written_goes_on_from_the_one_before(tmp_path, settings_of, uninterrupted, capfd):
    wanted = expected(uninterrupted, settings_of, tmp_path)
    settings = settings_of(**LONG)
    run = RunFolder(tmp_path / "runs" / "one")
    child = start(settings, tmp_path, DIE_WHILE_SAVING)
    child.communicate(timeout=180)
    assert child.returncode == -signal.SIGKILL
    assert (run.checkpoints / "checkpoint-9").is_dir() and not is_complete(run.checkpoints / "checkpoint-9")
    check_equal(fitune.train(resume=run.path), wanted)
    said = capfd.readouterr().err
    assert "ignoring checkpoint-9" in said and "from step 8" in said  # 8: the best so far, saved as it was measured


@pytest.mark.slow
def test_ctrl_c_writes_a_checkpoint_says_how_to_go_on_and_exits_130(tmp_path, settings_of, uninterrupted):
    wanted = expected(uninterrupted, settings_of, tmp_path)
    settings = settings_of(**LONG)
    run = RunFolder(tmp_path / "runs" / "one")
    child = start(settings, tmp_path, SLOW_STEPS)
    wait_for_step(child, run, 4)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 130, said
    stopped = read_rows(run.metrics)[-1]["step"]
    assert f"continue with: fitune train --resume {run.path}" in said
    assert step_of(complete_checkpoints(run.checkpoints)[-1]) == stopped < 24
    assert manifests.read(run.manifest)["status"] == "interrupted"
    assert not (run.path / "run.lock").exists()
    check_equal(fitune.train(settings, resume=True), wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_sigterm_and_sighup_are_as_ctrl_c(tmp_path, settings_of, uninterrupted, number, status):
    wanted = expected(uninterrupted, settings_of, tmp_path)
    run = RunFolder(tmp_path / "runs" / "one")
    child = start(settings_of(**LONG), tmp_path, SLOW_STEPS)
    wait_for_step(child, run, 4)
    child.send_signal(number)
    _, said = child.communicate(timeout=120)
    assert child.returncode == status, said
    assert number.name in said and f"continue with: fitune train --resume {run.path}" in said
    assert step_of(complete_checkpoints(run.checkpoints)[-1]) == read_rows(run.metrics)[-1]["step"] < 24
    assert run.status() == "interrupted" and not (run.path / "run.lock").exists()
    check_equal(fitune.train(resume=run.path), wanted)


@pytest.mark.slow
def test_sigusr1_finishes_a_run_where_it_is(tmp_path, settings_of):
    run = RunFolder(tmp_path / "runs" / "one")
    child = start(settings_of(**LONG), tmp_path, SLOW_STEPS)
    wait_for_step(child, run, 4)
    child.send_signal(signal.SIGUSR1)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 0, said
    assert run.status() == "finished" and (run.adapter / "adapter_model.safetensors").is_file()
    assert (
        4 <= manifests.read(run.manifest)["results"]["steps"] < 24 and manifests.read(run.manifest)["results"]["after"]
    )


@pytest.mark.slow
def test_a_second_sigterm_ends_at_once(tmp_path, settings_of):
    run = RunFolder(tmp_path / "runs" / "one")
    long = SLOW_STEPS.replace("0.1", "30 if args[0].state.global_step == 4 else 0")
    child = start(settings_of(**LONG), tmp_path, long)
    wait_for_step(child, run, 4)
    child.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=20)
    assert child.returncode == 143 and run.status() == "interrupted", said
    assert "Traceback" not in said


def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(tmp_path, settings_of, uninterrupted, stop_at, capfd):
    wanted = expected(uninterrupted, settings_of, tmp_path)
    run = stop_at(settings_of(**LONG), 12)
    newest, before = complete_checkpoints(run.checkpoints)[::-1][:2]
    file = newest / "trained.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 4
    file.write_bytes(raw)
    check_equal(fitune.train(resume=run.path), wanted)
    said = capfd.readouterr().err.replace("\n", " ")
    assert f"{newest} is damaged (trained.safetensors" in said and f"from step {step_of(before)}" in said


def test_a_disk_that_fills_in_mid_run_costs_a_sentence(tmp_path, settings_of, uninterrupted, monkeypatch):
    wanted = expected(uninterrupted, settings_of, tmp_path)
    append, run = run_folder.append_row, RunFolder(tmp_path / "runs" / "one")

    def full(path, row):
        if row.get("step") == 11 and row.get("kind") == "train":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(path, row)

    monkeypatch.setattr(run_folder, "append_row", full)
    with pytest.raises(StorageError) as caught:
        fitune.train(settings_of(**LONG))
    assert str(caught.value) == (
        f"{run.path} could not be written: no space is left on its disk (ENOSPC). checkpoint-9 is safe; free some space, "
        f"or move the folder to another disk, then continue with: fitune train --resume {run.path}"
    )
    assert run.status() == "failed" and not (run.path / "run.lock").exists()
    monkeypatch.undo()
    check_equal(fitune.train(resume=run.path), wanted)


@pytest.fixture
def stop_at(monkeypatch):
    """A run that is interrupted behind a step."""

    def run_to(settings, step):
        logged = RunLog.on_log

        def stop(self, args, state, control, **kwargs):
            logged(self, args, state, control, **kwargs)
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)

        monkeypatch.setattr(RunLog, "on_log", stop)
        result = fitune.train(settings)
        monkeypatch.undo()
        assert result.status == "interrupted" and result.exit_code == 143
        return RunFolder.open(result.folder)

    return run_to


def test_killed_between_the_last_step_and_the_end_only_the_ending_is_left(tmp_path, settings_of, monkeypatch):
    from fitune.training import run as story

    def die(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(story, "finish", die)
    with pytest.raises(KeyboardInterrupt):
        fitune.train(settings_of())
    monkeypatch.undo()
    run = RunFolder(tmp_path / "runs" / "one")
    before = numbers(run)
    result = fitune.train(resume=run.path)
    assert result.status == "finished" and result.steps == 4 and numbers(run) == before
    assert result.before is not None and result.after is not None


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path, settings_of, capfd):
    fitune.train(settings_of())
    run = RunFolder(tmp_path / "runs" / "one")
    wanted, samples = numbers(run), read_rows(run.samples)
    manifests.update(run.manifest, status="running")
    shutil.rmtree(run.checkpoints)
    fitune.train(resume=run.path)
    assert "no checkpoint yet" in capfd.readouterr().err
    assert numbers(run) == wanted and read_rows(run.samples) == samples


@pytest.fixture
def stopped(tmp_path, settings_of):
    """A finished run, made to look stopped."""
    fitune.train(settings_of(eval__samples=0))
    run = RunFolder(tmp_path / "runs" / "one")
    manifests.update(run.manifest, status="interrupted")
    return run


def test_other_settings_are_refused_and_every_difference_named(settings_of, stopped):
    changed = settings_of(eval__samples=0, lora__rank=8, train__learning_rate=5e-3, run__log_steps=2)
    with pytest.raises(RunError) as caught:
        fitune.train(changed, resume=True)
    words = str(caught.value)
    assert "lora.rank was 16 and is 8" in words and "train.learning_rate was 0.01 and is 0.005" in words
    assert "run.log_steps" not in words  # does not matter


def test_a_setting_that_came_later_had_its_default(settings_of, stopped):
    import yaml

    file = stopped.path / "settings.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["data"]["thinking"], stored["simpo"], stored["model"]["allow_unused_weights"]
    file.write_text(yaml.safe_dump(stored))
    check_same_settings(stopped, settings_of(eval__samples=0).model_dump(mode="json"))
    with pytest.raises(RunError, match=r"data\.thinking was auto and is drop"):
        check_same_settings(stopped, settings_of(eval__samples=0, data__thinking="drop").model_dump(mode="json"))


def test_flags_beside_resume_are_laid_over_the_runs_own_settings(stopped):
    refused = CliRunner().invoke(cli, ["train", "--resume", str(stopped.path), "--lora.rank", "8"])
    assert "lora.rank was 16 and is 8" in str(refused.exception) and "learning_rate" not in str(refused.exception)
    done = CliRunner().invoke(cli, ["train", "--resume", str(stopped.path), "--run.log_steps", "2"])
    assert done.exit_code == 0, done.output


def test_other_data_are_refused_even_under_the_same_name(settings_of, stopped, backwards):
    held = backwards.read_text()
    try:
        backwards.write_text(held.replace("tac", "tax"))
        with pytest.raises(RunError, match="the data changed since it began"):
            fitune.train(resume=stopped.path)
    finally:
        backwards.write_text(held)


def test_another_base_model_under_the_same_name_is_refused(settings_of, stopped, neox_folder):
    config = neox_folder / "config.json"
    held = config.read_text()
    try:
        config.write_text(json.dumps({**json.loads(held), "rotary_pct": 0.5}))
        with pytest.raises(RunError, match="base model's fingerprint changed"):
            fitune.train(resume=stopped.path)
    finally:
        config.write_text(held)


def test_a_finished_run_and_a_missing_one_cannot_be_resumed(tmp_path, settings_of, stopped):
    manifests.update(stopped.manifest, status="finished")
    with pytest.raises(RunError, match="is finished"):
        fitune.train(resume=stopped.path)
    with pytest.raises(RunError, match="holds no run"):
        fitune.train(resume=tmp_path / "runs" / "two")
    with pytest.raises(RunError, match="which run"):
        fitune.train(settings_of(run__name=None), resume=True)


def test_a_new_run_does_not_write_over_another(settings_of, stopped):
    with pytest.raises(RunError, match="holds another run"):
        fitune.train(settings_of())
