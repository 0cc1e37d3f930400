"""The dense copy of a GGUF file: made once, by content, within a limit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fitune.models.weight_files import gguf_reader
from fitune.models.weight_files.gguf_reader import load_dense


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is loaded from here on out of a GGUF file itself."""
    found: list[Any] = []
    plain = gguf_reader.GgufConfig
    monkeypatch.setattr(gguf_reader, "GgufConfig", lambda **options: found.append(options) or plain(**options))
    return found


def test_the_second_time_the_copy_is_read(
    tiny_gguf: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    times = unpacked(monkeypatch)
    first, report = load_dense(tiny_gguf, torch.float32)
    assert "are kept in" in capsys.readouterr().err and not report["missing_keys"]
    other = Path(shutil.copy(tiny_gguf, tmp_path / "renamed.gguf"))  # the content counts
    second, report = load_dense(other, torch.float32, "eager")
    assert len(times) == 1 and not report["missing_keys"] and second.config._attn_implementation == "eager"
    assert second.name_or_path == second.config._name_or_path == str(tmp_path)
    assert first.state_dict().keys() == second.state_dict().keys()
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    half, _ = load_dense(tiny_gguf, torch.bfloat16)
    assert len(times) == 2 and half.dtype == torch.bfloat16 and len(list(cache.iterdir())) == 2


def test_copies_stay_within_the_limit(tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch):
    times = unpacked(monkeypatch)
    load_dense(tiny_gguf, torch.float32)
    size = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    monkeypatch.setattr(gguf_reader, "KEPT_BYTES", size + 10)
    load_dense(tiny_gguf, torch.bfloat16)
    (kept,) = cache.iterdir()
    assert "bfloat16" in kept.name
    monkeypatch.setattr(gguf_reader, "KEPT_BYTES", 10)
    load_dense(tiny_gguf, torch.float32)
    assert len(times) == 3 and list(cache.iterdir()) == [kept]


def test_a_cache_that_cannot_be_written_is_no_fault(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path / "file"))
    model, _ = load_dense(tiny_gguf, torch.float32)
    assert model.dtype == torch.float32
