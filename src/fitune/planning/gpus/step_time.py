"""How long an optimizer step takes on a card: a roofline over the traced operators. Made to rank configurations.

In: a `Plan` with its traced work, the scenario, a `Gpu`. Out: the plan with `seconds_per_step`.
Imports nothing but the standard library.

Each operator of one micro-batch takes the longest of three: its arithmetic at the card's rate, its bytes at the card's
bandwidth, the least time of a kernel. Their sum is the GPU's time. Where the host cannot launch so many kernels in that
time, the host's time counts: a small model in eager mode waits for Python (Williams et al., "Roofline", CACM 2009, and
its host-bound case).
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, cast

from fitune.ops.optimizers import PLANNED
from fitune.planning.gpus.catalogue import Gpu
from fitune.planning.predict import Card, Plan
from fitune.planning.scenario import Scenario

# Shares of the nominal rates that large kernels reach. Products: NVIDIA's own cuBLAS figures for large 16-bit matrices
# are 70 to 80 % of the dense rate at the boost clock. Bytes: STREAM-like copies reach 80 to 90 % of the nominal rate.
MATRIX_SHARE = 0.7
BANDWIDTH_SHARE = 0.8
# The flash kernels' share (Dao 2023, arXiv 2307.08691, figures 4 to 6: 50 to 73 % forward, less backward).
ATTENTION_SHARE = 0.5
KERNEL_SECONDS = 2e-6  # an empty kernel's time on the card
HOST_SECONDS = 10e-6  # of eager torch with autograd, PEFT's and transformers' Python in it, for each kernel
# int8 products run at twice the 16-bit rate on the cards since Turing (their white papers).
RATES = {"matrix": 1.0, "attention": 1.0, "int8": 2.0}
SHARES = {"matrix": MATRIX_SHARE, "attention": ATTENTION_SHARE, "int8": MATRIX_SHARE, "fp32": MATRIX_SHARE}
# Bytes a second over PCIe 4 with 16 lanes, from and to pinned memory: 31.5 GB/s nominal, of which copies reach 80 %.
# Cards on PCIe 3 have half of it, on PCIe 5 twice.
PCIE_BYTES_S = 25e9
CLIP_BYTES = 12  # the norm reads each gradient, scaling reads and writes it


class Rates(NamedTuple):
    """How fast a card is, as in the catalogue."""

    matrix_flops: float
    fp32_flops: float
    bandwidth_bytes_s: float


def rates_of(gpu: Card | Gpu) -> Rates | None:
    """The card's rates; None when it has none."""
    matrix, bandwidth = getattr(gpu, "matrix_flops", None), getattr(gpu, "bandwidth_bytes_s", None)
    return Rates(matrix, getattr(gpu, "fp32_flops", None) or 0.0, bandwidth) if matrix and bandwidth else None


def with_time(plan: Plan, scenario: Scenario, gpu: Card | Gpu) -> Plan:
    """The plan with its ``seconds_per_step``; unchanged when the card's rates or the work are not known.

    Args:
        gpu: a `Card` has no rates.
    """
    seconds = step_seconds(plan, scenario, gpu)
    if seconds is None:
        return plan
    like = getattr(gpu, "rates_of", None)
    note = (f"a budget has no speed: the time is that of an {like}",) if like else ()
    return replace(plan, seconds_per_step=seconds, notes=tuple(dict.fromkeys([*plan.notes, *note])))


def step_seconds(plan: Plan, scenario: Scenario, gpu: Card | Gpu) -> float | None:
    """Seconds of an optimizer step with all its micro-batches; None when it cannot be told."""
    operators = cast("list[tuple[str, int, int, int]]", plan.work.get("operators"))
    rates = rates_of(gpu)
    if not operators or rates is None:
        return None
    on_card = sum(count * _operator_seconds(kind, flops, moved, rates) for kind, flops, moved, count in operators)
    on_host = HOST_SECONDS * sum(count for *_, count in operators)
    # Copies run beside the products, out in the forward pass and back in the backward pass.
    over_pcie = 2 * plan.host_bytes / PCIE_BYTES_S
    return max(on_card, on_host, over_pcie) * scenario.accumulation + _optimizer_seconds(plan, scenario, rates)


def _operator_seconds(kind: str, flops: float, moved_bytes: float, rates: Rates) -> float:
    """One operator of ``kind``: "matrix" (16-bit), "fp32", "int8", "attention", or "" for all others."""
    by_bytes = moved_bytes / (BANDWIDTH_SHARE * rates.bandwidth_bytes_s)
    if not kind or not flops:
        return max(by_bytes, KERNEL_SECONDS)
    rate = rates.fp32_flops if kind == "fp32" else RATES[kind] * rates.matrix_flops
    return max(flops / (SHARES[kind] * rate), by_bytes, KERNEL_SECONDS)


def _optimizer_seconds(plan: Plan, scenario: Scenario, rates: Rates) -> float:
    """The step itself; states that are paged are taken to be on the card."""
    if not scenario.optimizer_step:
        return 0.0
    each = PLANNED[scenario.optimizer].step_bytes + (CLIP_BYTES if scenario.max_grad_norm else 0)
    if scenario.tuning == "full" and scenario.trained_dtype == "same" and scenario.weights in ("bf16", "fp16"):
        each /= 2
    return plan.trained_parameters * each / (BANDWIDTH_SHARE * rates.bandwidth_bytes_s)
