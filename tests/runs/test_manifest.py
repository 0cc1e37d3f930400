"""manifest.json, and runs side by side."""

from __future__ import annotations

import pytest
import yaml

from fitune.errors import RunError
from fitune.runs import manifest as manifests
from fitune.runs.compare import compare_runs, find_run, flat, list_runs, show_run
from fitune.runs.run_folder import RunFolder


def write_run(root, name, started, rank=16, losses=(2.0, 1.0), status="finished", after=0.9):
    run = RunFolder.create(root / name)
    run.write_settings({"method": "sft", "lora": {"rank": rank, "targets": "all-linear"}})
    manifests.write(run.manifest, {
        "status": status, "started": started, "method": "sft", "tuning": "lora", "versions": {"torch": "2.15"},
        "model": {"name": "tiny"}, "data": {"train": "a.jsonl", "hashes": {"train": "0123"}},
        "training": {"steps": len(losses)},
        "results": {"before": {"loss": 3.0}, "after": {"loss": after}, "best_step": 2},
    })  # fmt: skip
    for step, loss in enumerate(losses, start=1):
        run.log_metrics({"step": step, "kind": "train", "loss": loss})
    return run


def test_versions_name_what_decides_the_numbers():
    found = manifests.versions()
    assert {"python", "system", "fitune", "torch", "transformers", "peft"} <= found.keys()


def test_update_merges_one_level_deep(tmp_path):
    path = tmp_path / "manifest.json"
    manifests.write(path, {"status": "running", "results": {"before": 1}})
    manifests.update(path, status="finished", results={"after": 2})
    assert manifests.read(path) == {"status": "finished", "results": {"before": 1, "after": 2}}


@pytest.mark.parametrize(("content", "words"), [(None, "missing"), ("{", "damaged")])
def test_a_missing_or_damaged_manifest_is_an_error(tmp_path, content, words):
    path = tmp_path / "manifest.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(RunError, match=words):
        manifests.read(path)


def test_the_fingerprint_follows_contents_of_small_files_and_sizes_of_large_ones(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "model.safetensors").write_bytes(b"x" * (5 * 2**20))
    first = manifests.folder_fingerprint(tmp_path)
    assert manifests.folder_fingerprint(tmp_path) == first
    (tmp_path / "config.json").write_text('{"a": 2}')
    assert manifests.folder_fingerprint(tmp_path) != first
    (tmp_path / "config.json").write_text('{"a": 1}')
    (tmp_path / "model.safetensors").write_bytes(b"x" * (5 * 2**20 + 1))
    assert manifests.folder_fingerprint(tmp_path) != first


def test_runs_are_listed_newest_first_and_a_damaged_one_is_shown_as_such(tmp_path):
    write_run(tmp_path, "old", "2026-01-01T00:00:00Z")
    write_run(tmp_path, "new", "2026-02-01T00:00:00Z", status="interrupted")
    write_run(tmp_path, "broken", "2026-03-01T00:00:00Z").manifest.write_text("{")
    runs = list_runs(tmp_path)
    assert [(run["name"], run["status"]) for run in runs] == [
        ("new", "interrupted"), ("old", "finished"), ("broken", "damaged"),
    ]  # fmt: skip
    assert (runs[1]["step"], runs[1]["loss"], runs[1]["after"]) == (2, 1.0, {"loss": 0.9})
    assert list_runs(tmp_path / "nothing") == []


def test_a_run_is_found_by_name_or_path(tmp_path):
    run = write_run(tmp_path, "pig", "2026-01-01T00:00:00Z")
    assert find_run("pig", tmp_path) == find_run(str(run.path)) == run.path
    with pytest.raises(RunError, match=r"runs in .*: pig"):
        find_run("pug", tmp_path)


def test_a_run_cut_short_before_its_first_step_can_be_shown(tmp_path):
    run = write_run(tmp_path, "early", "2026-01-01T00:00:00Z", losses=())
    shown = show_run(run.path)
    assert shown["summary"]["step"] == 0 and shown["summary"]["loss"] is None and shown["checkpoints"] == []


def test_comparing_shows_only_what_differs(tmp_path):
    one = write_run(tmp_path, "one", "2026-01-01T00:00:00Z", rank=8, after=0.5)
    two = write_run(tmp_path, "two", "2026-01-02T00:00:00Z", rank=16, losses=(2.0, 1.5, 1.2))
    found = compare_runs([one.path, two.path])
    assert found["settings"] == {"lora.rank": [8, 16]}
    assert found["versions"] == {} and found["data"] == {}
    assert found["results"] == {"loss": [0.5, 0.9]}
    assert found["losses"] == [[(1, 2.0), (2, 1.0)], [(1, 2.0), (2, 1.5), (3, 1.2)]]


def test_damaged_settings_are_said(tmp_path):
    run = write_run(tmp_path, "one", "2026-01-01T00:00:00Z")
    run.settings.write_text("a: [1")
    with pytest.raises(RunError, match="damaged"):
        show_run(run.path)


def test_flat_keeps_empty_dicts_and_lists():
    assert flat({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_settings_are_plain_yaml(tmp_path):
    run = write_run(tmp_path, "one", "2026-01-01T00:00:00Z")
    assert yaml.safe_load(run.settings.read_text())["lora"]["rank"] == 16
