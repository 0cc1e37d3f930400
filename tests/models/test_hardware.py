"""The precision follows from the machine; the machines here are made up."""

from __future__ import annotations

import pytest
import torch

from fitune.errors import ModelError
from fitune.models import hardware
from fitune.models.hardware import Hardware, choose_precision, detect

CPU = Hardware("cpu", "a CPU", 2**33, 2**32, 4, False)
AMPERE = Hardware("cuda", "NVIDIA A100", 2**36, 2**36, 4, True, (8, 0))
TURING = Hardware("cuda", "NVIDIA T4", 2**34, 2**34, 4, False, (7, 5))


@pytest.mark.parametrize(
    ("asked", "machine", "dtype", "reason"),
    [
        ("auto", CPU, torch.float32, "a CPU has no bf16 instructions"),
        ("auto", AMPERE, torch.bfloat16, "supports bf16 natively"),
        ("auto", TURING, torch.float16, "before Ampere"),
        ("bf16", CPU, torch.bfloat16, "asked for"),
        ("fp32", AMPERE, torch.float32, "asked for"),
        ("fp16", TURING, torch.float16, "asked for"),
    ],
)
def test_precision_and_its_reason(asked: str, machine: Hardware, dtype: torch.dtype, reason: str):
    chosen = choose_precision(asked, machine)
    assert chosen.dtype == dtype
    assert reason in chosen.reason


def test_fp16_on_a_cpu_is_refused():
    with pytest.raises(ModelError, match=r"model\.precision is fp16 and the device is a CPU.*use auto"):
        choose_precision("fp16", CPU)


@pytest.mark.parametrize(("flag", "fast"), [("avx512_bf16", True), ("amx_bf16", True), ("avx512f avx2", False)])
def test_cpu_flags(tmp_path, monkeypatch: pytest.MonkeyPatch, flag: str, fast: bool):
    """/proc/cpuinfo as Linux writes it."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor : 0\nmodel name : Some CPU @ 2 GHz\nflags : fpu {flag} sse\n")
    monkeypatch.setattr(hardware, "CPUINFO", info)
    assert hardware._cpu_has_bf16() is fast
    assert hardware._cpu_name() == "Some CPU @ 2 GHz"
    monkeypatch.setattr(hardware, "CPUINFO", tmp_path / "none")
    assert hardware._cpu_has_bf16() is False


@pytest.mark.skipif(not hasattr(torch.cpu, "_is_avx512_bf16_supported"), reason="this torch does not tell")
def test_flags_agree_with_torch():
    if torch.cpu._is_avx512_bf16_supported():
        assert hardware._cpu_has_bf16()


def test_this_machine():
    found = detect("cpu")
    assert found.device == "cpu" and found.cores >= 1 and found.name
    assert found.memory_bytes > found.free_bytes > 0
    assert found.to_dict()["fast_bf16"] is found.fast_bf16


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA GPU")
def test_a_gpu_that_is_not_there():
    with pytest.raises(ModelError, match=r"model\.device is cuda and torch sees no CUDA GPU"):
        detect("cuda")


@pytest.mark.skipif(hardware.platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_the_heap_is_kept_unless_the_user_has_set_its_thresholds(monkeypatch: pytest.MonkeyPatch):
    asked = []
    library = type("Library", (), {"mallopt": staticmethod(lambda parameter, value: asked.append((parameter, value)))})
    monkeypatch.setattr(hardware.ctypes, "CDLL", lambda name: library)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    hardware.keep_heap()
    assert asked == []
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_")
    hardware.keep_heap()
    assert asked == [(-1, 512 * 2**20), (-3, 32 * 2**20)]
