"""Files that appear whole, and disks that take no more."""

from __future__ import annotations

import errno
import os

import pytest
from safetensors import SafetensorError

from fitune.runs.disk_faults import storage_error, write_whole


def told(error, folder):
    found = storage_error(error, folder, "checkpoint-9 is safe", "go on")
    return None if found is None else str(found)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ENOSPC", "no space is left"),
        ("EDQUOT", "your quota"),
        ("EROFS", "read-only"),
        ("EIO", "input/output error"),
        ("EFBIG", "ulimit -f"),
        ("EACCES", "chmod u+w"),
    ],
)
def test_each_reason_has_its_words_and_its_remedy(tmp_path, name, words):
    number = getattr(errno, name)
    said = told(OSError(number, os.strerror(number), str(tmp_path / "metrics.jsonl")), tmp_path)
    assert str(tmp_path) in said and words in said and f"({name})" in said
    assert "checkpoint-9 is safe" in said and said.endswith("then go on")


def test_what_safetensors_says_of_a_full_disk_is_read(tmp_path):
    error = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert "ENOSPC" in told(error, tmp_path)


def test_what_torch_says_is_looked_into(tmp_path):
    error = RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0")
    assert "EIO" in told(error, tmp_path)  # a megabyte can be written here after all
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("shapes differ"),
        OSError(errno.ENOSPC, "elsewhere", "/another/disk/file"),
        FileNotFoundError(errno.ENOENT, "no such file", "data.jsonl"),
        OSError(errno.ECONNRESET, "connection lost"),
    ],
)
def test_other_errors_are_not_of_the_disk(tmp_path, error):
    assert told(error, tmp_path) is None


def test_a_folder_that_was_removed_is_said(tmp_path):
    gone = tmp_path / "gone"
    assert "is gone" in told(FileNotFoundError(errno.ENOENT, "no such file", str(gone / "metrics.jsonl")), gone)


def test_a_file_is_replaced_whole_or_left_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_whole(path, "old")

    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(OSError, match="full"):
            write_whole(path, "new")
    assert path.read_text() == "old" and [one.name for one in tmp_path.iterdir()] == ["a.json"]
    write_whole(path, "new")
    assert path.read_text() == "new"
