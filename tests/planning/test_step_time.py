"""The step's time: a roofline by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fitune.ops.optimizers.adamw import ADAMW
from fitune.planning.gpus.catalogue import budget, find_gpu
from fitune.planning.gpus.step_time import (
    BANDWIDTH_SHARE,
    HOST_SECONDS,
    KERNEL_SECONDS,
    MATRIX_SHARE,
    step_seconds,
    with_time,
)
from fitune.planning.predict import Plan
from fitune.planning.scenario import Scenario

T4 = find_gpu("T4")
PLAIN = Scenario(optimizer_step=False, weights="fp16", autocast="fp16")


def plan_of(*operators: tuple[str, int, int, int], trained: int = 0) -> Plan:
    return Plan(
        1, 1, 1, {}, "", {}, True, trained_parameters=trained, work={"operators": [list(one) for one in operators]}
    )


def test_each_operator_takes_the_longest_of_arithmetic_bytes_and_launch() -> None:
    products = step_seconds(plan_of(("matrix", 10**13, 10**6, 1)), PLAIN, T4)
    assert products == pytest.approx(10**13 / (MATRIX_SHARE * 65e12))
    moved = step_seconds(plan_of(("", 0, 10**9, 3)), PLAIN, T4)
    assert moved == pytest.approx(3 * 10**9 / (BANDWIDTH_SHARE * 320e9))
    assert step_seconds(plan_of(("fp32", 10**12, 0, 1)), PLAIN, T4) == pytest.approx(
        10**12 / (MATRIX_SHARE * 40 * 128 * 1590e6)
    )


def test_many_small_kernels_wait_for_the_host() -> None:
    assert step_seconds(plan_of(("", 0, 1000, 500)), PLAIN, T4) == pytest.approx(500 * HOST_SECONDS)
    assert KERNEL_SECONDS < HOST_SECONDS


def test_accumulation_repeats_the_micro_batch_and_the_optimizer_steps_once() -> None:
    made = plan_of(("matrix", 10**13, 0, 1), trained=10**9)
    one = step_seconds(made, PLAIN, T4)
    four = step_seconds(made, PLAIN.but(accumulation=4), T4)
    assert one is not None and four == pytest.approx(4 * one)
    stepped = step_seconds(made, PLAIN.but(optimizer_step=True, max_grad_norm=None), T4)
    assert stepped == pytest.approx(one + 10**9 * ADAMW.step_bytes / (BANDWIDTH_SHARE * 320e9))


def test_what_is_not_known_is_not_said() -> None:
    made = plan_of(("matrix", 10**13, 0, 1))
    assert with_time(Plan(1, 1, 1, {}, "", {}, True), PLAIN, T4).seconds_per_step is None
    from fitune.planning.predict import Card

    assert with_time(made, PLAIN, Card("c", 1, (8, 0), 0)).seconds_per_step is None
    assert "RTX 4090" in with_time(made, PLAIN, budget(2**34)).notes[0]


CONFIG: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def flops(**changes: Any) -> dict[str, float]:
    """Arithmetic by kind of one traced micro-batch."""
    from fitune.planning.trace_cache import make_trace

    found: dict[str, float] = {}
    traced = make_trace(CONFIG, Scenario(seq_len=128, rank=4).but(**changes), (8, 0))
    for kind, count, _, times in traced["work"]["operators"]:
        found[kind] = found.get(kind, 0) + count * times
    return found


def test_traced_arithmetic_is_what_the_model_needs() -> None:
    # Values of the products: attention 64·64·2 + 64·32·2, feed-forward 3·64·128, two layers, and the head.
    values = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128) + 64 * 320
    full = flops(tuning="full", weights="fp32")
    # Forward 2 operations a value and token, backward 4; the first layer's inputs need no gradients, which is less.
    assert full["matrix"] == pytest.approx(6 * values * 128, rel=0.03)
    # Causal flash attention: 7 products of S·S·D over 4 heads of 16, halved, in two layers.
    assert full["attention"] == 2 * 7 * 2 * 4 * 128 * 128 * 16 // 2
    # LoRA trains no base weight: a third less, and its own factors more.
    lora = flops()
    assert 0.6 * full["matrix"] < lora["matrix"] < 0.9 * full["matrix"]
    # Checkpointing computes the layers' forward pass again: at most 4/3.
    again = flops(tuning="full", weights="fp32", gradient_checkpointing=True)
    assert 1.2 * full["matrix"] < again["matrix"] < 1.34 * full["matrix"]
    assert flops(weights="int8")["int8"] > 0 and "matrix" in flops(weights="nf4")
