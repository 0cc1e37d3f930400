"""Room on the disk, before the first step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fitune.errors import RunError
from fitune.runs import disk_space


def test_adamw_keeps_three_fp32_values_a_trained_parameter():
    needed = disk_space.bytes_needed(1_000_000, 8_000_000, keep_checkpoints=2, final_bytes=4_000_000)
    assert needed["checkpoint"] == 12_000_000  # weight and two states, 4 bytes each
    assert needed["checkpoints"] == 36_000_000  # two kept and the one being written
    assert needed["total"] == 36_000_000 + 4_000_000 + disk_space.SLACK_BYTES


def test_the_best_one_beside_the_newest_is_counted():
    one, two = (disk_space.bytes_needed(1000, 8000, keep, 0)["checkpoints"] for keep in (1, 2))
    assert one == two


def test_too_little_space_is_an_error_with_the_numbers(tmp_path, monkeypatch):
    needed = disk_space.bytes_needed(10**9, 8 * 10**9, 2, 4 * 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5 * 2**30))
    with pytest.raises(RunError, match=r"5\.0 GiB free and 37\.3 GiB are needed \(11\.2 GiB a checkpoint"):
        disk_space.check_space(tmp_path, needed)


def test_what_a_resumed_run_holds_already_is_not_asked_for_twice(tmp_path, monkeypatch):
    needed = disk_space.bytes_needed(10**9, 8 * 10**9, 2, 4 * 10**9)
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=5 * 2**30))
    disk_space.check_space(tmp_path, needed, held_bytes=needed["total"] - 2 * 2**30)


def test_the_size_of_a_folder_counts_what_lies_deep(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 10)
    assert disk_space.folder_bytes(tmp_path) == 10
