"""The demo on a tiny model: trains, shows before and after, goes on where it was; its recipe is the one in recipes/."""

import json
import os
import platform
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fitune.cli import cli
from fitune.cli.demo import RECIPE
from fitune.config.sections import Settings
from fitune.errors import DataError, RunError
from fitune.runs.run_folder import RunFolder


def test_the_recipe_file_trains_what_the_demo_trains():
    path = Path(__file__).parents[2] / "recipes" / "pig-latin.yaml"
    recipe = Settings.model_validate({**yaml.safe_load(path.read_text()), "run": RECIPE["run"]}, strict=False)
    assert recipe == Settings.model_validate(RECIPE)


def run_of(folder: Path, data: str, status: str) -> RunFolder:
    """A run as its folder tells it, without the work."""
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.manifest.write_text(json.dumps({"status": status, "data": {"train": data}}))
    run.write_settings(Settings.model_validate(RECIPE).model_dump(mode="json"))
    return run


def test_a_fault_in_the_sentences_is_told_before_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["demo", "--also", "none.txt"])
    assert isinstance(result.exception, DataError) and "none.txt" in str(result.exception)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("more", [(), ("--again",)])
@pytest.mark.parametrize("status", ["finished", "interrupted"])
def test_another_run_of_that_name_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...], status: str
):
    monkeypatch.chdir(tmp_path)
    run = run_of(tmp_path / "runs" / "mine", "mine.jsonl", status)
    result = CliRunner().invoke(cli, ["demo", "--name", "mine", *more])
    assert isinstance(result.exception, RunError) and "trains on mine.jsonl" in str(result.exception)
    assert run.manifest.exists()


def test_a_run_that_another_process_writes_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run = run_of(tmp_path / "runs" / "demo", "demo:pig-latin", "running")
    (run.path / "run.lock").write_text(json.dumps({"pid": os.getppid(), "host": platform.node()}))
    result = CliRunner().invoke(cli, ["demo", "--again"])
    assert isinstance(result.exception, RunError) and str(os.getppid()) in str(result.exception)
    assert run.manifest.exists()


def test_flags_that_a_run_was_not_made_with_are_not_silently_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    run_of(tmp_path / "runs" / "demo", "demo:pig-latin", "finished")
    result = CliRunner().invoke(cli, ["demo", "--steps", "7"])
    assert isinstance(result.exception, RunError) and "max_steps was null and is 7" in str(result.exception)


@pytest.mark.slow
def test_demo_ends_with_tables_and_a_finished_run_is_not_trained_again(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "also.txt").write_text("The pig eats.\nA string!\n")
    arguments = ["demo", "--model", str(tiny_llama), "--steps", "2", "--also", "also.txt", "--json"]
    first = CliRunner().invoke(cli, arguments)
    assert first.exit_code == 0, first.output
    tables = json.loads(first.stdout)
    assert tables["also.txt"]["rows"] == 2 and tables["held-out sentences"]["rows"] == 20
    wanted = {row["asked"]: row["wanted"] for row in tables["also.txt"]["sentences"]}
    assert wanted == {"The pig eats.": "Ethay igpay eatsway.", "A string!": "Away ingstray!"}
    assert set(tables["also.txt"]["before"]) == {"exact_match", "word_accuracy", "chrf"}
    steps = (tmp_path / "runs" / "demo" / "metrics.jsonl").read_text()
    again = CliRunner().invoke(cli, [*arguments[:-1], "--svg", "demo.svg"])
    assert again.exit_code == 0 and "--again trains it again" in again.stderr and "word accuracy" in again.stdout
    assert (tmp_path / "runs" / "demo" / "metrics.jsonl").read_text() == steps
    assert "<svg" in (tmp_path / "demo.svg").read_text()
