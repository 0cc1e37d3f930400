"""The demo on a tiny model: trains, shows before and after, goes on where it was; its recipe is the one in recipes/."""

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fitune.cli import cli
from fitune.cli.demo import RECIPE
from fitune.config import Settings


def test_the_recipe_file_trains_what_the_demo_trains():
    path = Path(__file__).parents[2] / "recipes" / "pig-latin.yaml"
    recipe = Settings.model_validate({**yaml.safe_load(path.read_text()), "run": RECIPE["run"]}, strict=False)
    assert recipe == Settings.model_validate(RECIPE)


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
    assert again.exit_code == 0 and "--again trains anew" in again.stderr and "words right" in again.stdout
    assert (tmp_path / "runs" / "demo" / "metrics.jsonl").read_text() == steps
    assert "<svg" in (tmp_path / "demo.svg").read_text()
