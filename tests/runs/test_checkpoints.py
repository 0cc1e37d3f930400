"""Which checkpoints count, and which go."""

from __future__ import annotations

import json

import pytest

from fitune.runs import checkpoints


def write_checkpoint(root, step, whole=True):
    folder = root / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"x" * 100)
    if whole:
        checkpoints.mark_complete(folder)
    return folder


def test_a_checkpoint_without_its_mark_does_not_count(tmp_path):
    whole = write_checkpoint(tmp_path, 5)
    write_checkpoint(tmp_path, 10, whole=False)
    assert checkpoints.newest_complete(tmp_path) == whole


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_checkpoint_with_a_damaged_file_does_not_count(tmp_path, damage):
    folder = write_checkpoint(tmp_path, 5)
    file = folder / "optimizer.pt"
    file.unlink() if damage == "missing" else file.write_bytes(b"x" * 99)
    assert checkpoints.newest_complete(tmp_path) is None


def test_a_mark_that_is_not_json_does_not_count(tmp_path):
    folder = write_checkpoint(tmp_path, 5)
    (folder / checkpoints.MARK).write_text("{")
    assert not checkpoints.is_complete(folder)


@pytest.mark.parametrize("name", ["optimizer.pt", "trainer_state.json"])
def test_one_bit_that_changed_is_found_and_its_file_named(tmp_path, name):
    folder = write_checkpoint(tmp_path, 5)
    assert checkpoints.damaged_file(folder) is None
    raw = bytearray((folder / name).read_bytes())
    raw[1] ^= 1
    (folder / name).write_bytes(raw)
    assert checkpoints.is_complete(folder) and checkpoints.damaged_file(folder) == name


def test_a_mark_of_an_earlier_release_vouches_for_sizes(tmp_path):
    folder = write_checkpoint(tmp_path, 5)
    mark = json.loads((folder / checkpoints.MARK).read_text())
    del mark["sha256"]
    (folder / checkpoints.MARK).write_text(json.dumps(mark))
    assert checkpoints.damaged_file(folder) is None
    (folder / "optimizer.pt").write_bytes(b"y")
    assert checkpoints.damaged_file(folder) == checkpoints.MARK


def test_steps_are_ordered_as_numbers(tmp_path):
    for step in (9, 100, 20):
        write_checkpoint(tmp_path, step)
    assert [checkpoints.step_of(folder) for folder in checkpoints.all_checkpoints(tmp_path)] == [9, 20, 100]
    assert checkpoints.newest_complete(tmp_path).name == "checkpoint-100"


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [
        (2, None, [4, 5]),
        (2, 1, [1, 5]),  # the best counts among the two
        (2, 5, [4, 5]),
        (3, 2, [2, 4, 5]),
        (1, 2, [2, 5]),  # the newest stays too: without it there is nothing to resume from
        (1, None, [5]),
        (9, None, [1, 2, 3, 4, 5]),
    ],
)
def test_old_ones_go_and_the_best_stays(tmp_path, keep, best, left):
    for step in range(1, 6):
        write_checkpoint(tmp_path, step)
    checkpoints.drop_old(tmp_path, keep, best)
    assert [checkpoints.step_of(folder) for folder in checkpoints.all_checkpoints(tmp_path)] == left


def test_an_incomplete_newer_one_is_not_taken_for_old(tmp_path):
    write_checkpoint(tmp_path, 1)
    write_checkpoint(tmp_path, 2, whole=False)
    checkpoints.drop_old(tmp_path, 1, None)
    assert [checkpoints.step_of(folder) for folder in checkpoints.all_checkpoints(tmp_path)] == [1, 2]
    assert [folder.name for folder in checkpoints.drop_incomplete(tmp_path)] == ["checkpoint-2"]


def test_what_is_carried_comes_back_exactly(tmp_path):
    folder = write_checkpoint(tmp_path, 1, whole=False)
    values = {"log": {"losses": [0.1 + 0.2, 1e-300, 4.094459533691406]}}
    checkpoints.write_extra_state(folder, values)
    assert checkpoints.read_extra_state(folder) == values
    assert json.loads((folder / checkpoints.CARRIED).read_text()) == values
