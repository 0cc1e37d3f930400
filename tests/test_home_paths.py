"""What is handed on does not name the home folder of whoever made it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import fitune
from fitune.adapters.adapter_folder import read_facts
from fitune.evaluation.inference_model import open_target
from fitune.home_paths import without_home


def test_the_home_folder_and_no_other_becomes_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/al")
    text = 'at /home/al/models, "/home/al", /home/alice/x and /home/al-2, /srv/home/al/x'
    assert without_home(text) == 'at ~/models, "~", /home/alice/x and /home/al-2, /srv~/x'
    monkeypatch.setenv("HOME", "/")
    assert without_home("/a/b") == "/a/b"


@pytest.mark.slow
def test_no_file_that_is_handed_on_names_it(
    settings_of: Any, neox_folder: Path, backwards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "someones-home"
    monkeypatch.setenv("HOME", str(home))
    model = Path(shutil.copytree(neox_folder, home / "models" / "tiny"))
    rows = Path(shutil.copy(backwards, home / "rows.jsonl"))
    result = fitune.train(
        settings_of(model__name=str(model), data__train=str(rows), run__folder=str(home / "runs"), train__max_steps=1)
    )
    fitune.export(str(result.folder), "gguf")
    fitune.export(str(result.folder), "merged")
    fitune.export(str(result.folder), "adapter")
    local = {"settings.yaml", "manifest.json"}  # of this machine: a run is resumed with them
    for path in result.folder.rglob("*"):
        if path.is_file() and path.name not in local and "checkpoints" not in path.parts:
            assert b"someones-home" not in path.read_bytes(), path
    assert read_facts(result.folder / "adapter")["base"]["name"] == "~/models/tiny"
    assert open_target(str(result.folder)).adapter == result.folder / "adapter"
