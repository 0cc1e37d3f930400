"""What a name means: a run, a folder, or a model; a typo in a path is no question for the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from fitune.errors import ModelError
from fitune.evaluation.inference_model import find_target


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("runs/demo/adapter", "outputs/first/adapter"):
        Path(place).mkdir(parents=True)
        (Path(place).parent / "manifest.json").write_text("{}")


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize("name", ["runs/demp", "./runs/demp", "runs/demp/"])
def test_a_run_that_is_not_there_is_told_with_those_that_are(name: str) -> None:
    with pytest.raises(
        ModelError, match=r'there is no run or model ".*demp.*" \(did you mean "demo"\?\); runs holds demo'
    ):
        find_target(name, "runs")


@pytest.mark.usefixtures("runs")
def test_a_folder_of_runs_by_any_name_is_one(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="outputs holds first"):
        find_target("outputs/nothing", "runs")
    with pytest.raises(ModelError, match="holds nothing"):
        find_target("runs/demo/adapter/other", "runs")


@pytest.mark.usefixtures("runs")
def test_a_model_of_the_hub_and_a_run_are_found() -> None:
    assert find_target("HuggingFaceTB/SmolLM2-135M", "runs") is None
    assert find_target("demo", "runs") == Path("runs/demo/adapter") == find_target("runs/demo", "elsewhere")
