"""Measured and predicted memory, side by side."""

from __future__ import annotations

import sys

import pytest
import torch

from fitune.training.memory_report import CPU_NOISE_BYTES, CPU_TOLERANCE, GPU_TOLERANCE, begin_measuring, compare

MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be set back on Linux only")
def test_the_peak_of_the_process_counts_from_the_beginning():
    before = torch.ones(300 * MIB // 4)
    del before  # an earlier peak, which is not the run's
    meter = begin_measuring("cpu")
    held = torch.ones(100 * MIB // 4)
    del held
    assert 95 * MIB < meter.measured()["resident_growth_bytes"] < 130 * MIB


def test_a_gpu_is_judged_by_what_is_allocated():
    found = compare(
        {"allocated_bytes": 1000 * MIB, "reserved_bytes": 1100 * MIB, "smi_bytes": 1},
        {"allocated_bytes": 1040 * MIB, "reserved_bytes": 1300 * MIB},
    )
    assert found is not None and found.agrees and found.warning() is None
    assert found.tolerance == GPU_TOLERANCE and found.difference == pytest.approx(0.04)
    assert found.lines()[0] == "peak memory, allocated: predicted 1,000 MiB, measured 1,040 MiB (+4.0%)"
    off = compare({"allocated_bytes": 1000 * MIB}, {"allocated_bytes": 1080 * MIB})
    assert off is not None and not off.agrees
    assert "8% more memory than planned (tolerance 5%)" in (off.warning() or "") and "memory.margin" in (
        off.warning() or ""
    )
    less = compare({"allocated_bytes": 1000 * MIB}, {"allocated_bytes": 900 * MIB})
    assert less is not None and "10% less memory" in (less.warning() or "")


def test_a_cpu_is_judged_more_coarsely_and_small_differences_are_noise():
    near = compare({"resident_growth_bytes": 50 * MIB}, {"resident_growth_bytes": 150 * MIB, "resident_peak_bytes": 1})
    assert near is not None and near.agrees and near.tolerance == CPU_TOLERANCE and near.noise_bytes == CPU_NOISE_BYTES
    assert "process RSS" in near.lines()[0]
    far = compare({"resident_growth_bytes": 2000 * MIB}, {"resident_growth_bytes": 2400 * MIB})
    assert far is not None and not far.agrees and "20% more memory" in (far.warning() or "")
    less = compare({"resident_growth_bytes": 2000 * MIB}, {"resident_growth_bytes": 1000 * MIB})
    assert less is not None and not less.agrees and less.warning() is None


def test_without_a_plan_there_is_nothing_to_compare():
    assert compare({}, {"resident_growth_bytes": 1}) is None
