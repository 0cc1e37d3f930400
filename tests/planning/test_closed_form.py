"""The closed form: the course's worked models, and what stands beside the exact plan."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from fitune.errors import PlanError
from fitune.planning.closed_form import (
    activation_bytes,
    activation_ratio,
    closed_form,
    compared,
    explain,
    sizes_of,
    untraced_plan,
    weight_values,
)
from fitune.planning.predict import Plan
from fitune.planning.report.plan_report import View, advice, as_dict, verdict
from fitune.planning.scenario import Scenario

# The course's worked models: hidden, tokens, heads, layers, then by hand: values of the weights (L·12·h²), bytes of the
# activations of one row, flash (L·34·h·s) and eager (more by L·5·heads·s²).
WORKED = {
    "OPT-350M": (1024, 2048, 16, 24, 301_989_888, 1_711_276_032, 9_764_339_712),
    "Phi-3.5 Mini": (3072, 4096, 32, 32, 3_623_878_656, 13_690_208_256, 99_589_554_176),
    "Llama-2 7B": (4096, 4096, 32, 32, 6_442_450_944, 18_253_611_008, 104_152_956_928),
    "Llama-3.2 3B": (3072, 8192, 24, 28, 3_170_893_824, 23_957_864_448, 249_443_647_488),
    "Mistral 8B": (4096, 32768, 32, 32, 6_442_450_944, 146_028_888_064, 5_643_587_026_944),
    "Qwen-2.5 7B": (3584, 32768, 28, 28, 4_315_938_816, 111_803_367_424, 4_320_871_317_504),
    "OLMo 7B": (4096, 2048, 32, 32, 6_442_450_944, 9_126_805_504, 30_601_641_984),
}
# Parameters of published mixtures, as their model cards and weight files count them.
CONFIGS = Path(__file__).parent / "configs"
PUBLISHED = {
    "gpt-oss-20b": 20_914_757_184,
    "qwen3-30b-a3b": 30_532_122_624,
    "mixtral-8x7b": 46_702_792_704,
    "olmoe-1b-7b": 6_919_161_856,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "glm-4.5": 355_000_000_000,
}
VALUES = {"num_hidden_layers": 24, "hidden_size": 1024, "num_attention_heads": 16, "vocab_size": 50272}
GPU: Any = SimpleNamespace(usable_bytes=16 * 2**30, context_bytes=2**29, capability=(8, 9))


@pytest.mark.parametrize("name", WORKED)
def test_the_worked_models(name: str) -> None:
    hidden, tokens, heads, layers, values, flash, eager = WORKED[name]
    assert weight_values(layers, hidden) == values
    assert activation_bytes(layers, hidden, heads, 1, tokens, False) == flash
    assert activation_bytes(layers, hidden, heads, 1, tokens, True) == eager
    # The rounded ratio (3 for 34/12, ½ for 5/12) is never lower, and at most a fifth higher, than the two formulas give.
    for bytes_of, is_eager in ((flash, False), (eager, True)):
        exact = bytes_of / (2 * values)
        assert exact <= activation_ratio(hidden, heads, tokens, is_eager) <= 1.2 * exact
    # the same share whatever the weights are stored in: p_model
    assert activation_ratio(hidden, heads, tokens, True, 2, 0.5) == 4 * activation_ratio(
        hidden, heads, tokens, True, 2, 2
    )


def test_ratios_by_hand() -> None:
    # OPT-350M at 2,048 tokens, s/h = 2: 3·2 = 6 and ½·16·4 = 32 bytes a value, 2 bytes a value of the weights.
    assert activation_ratio(1024, 16, 2048, False) == 3.0
    assert activation_ratio(1024, 16, 2048, True) == 19.0


def test_parts_by_hand() -> None:
    full = closed_form(VALUES, Scenario(weights="fp32", tuning="full", seq_len=2048, attention="eager"))
    p = 301_989_888
    assert full["parts"] == {
        "weights": 4 * p, "gradients": 4 * p, "optimizer states": 8 * p,
        "activations": 1_711_276_032, "attention": 8_053_063_680,
    }  # fmt: skip
    assert full["total_bytes"] == sum(full["parts"].values())
    lora = closed_form(VALUES, Scenario(weights="nf4", rank=8, seq_len=2048, gradient_checkpointing=True))
    # half a byte, and for each block of 64 a scale of 8 bits, which 256 share one of 32
    assert lora["parts"]["weights"] == p // 2 + p // 64 + p * 4 // (64 * 256)
    assert lora["trained_values"] == 24 * 18 * 8 * 1024  # 1 % of p
    assert lora["parts"]["adapters"] == 4 * lora["trained_values"]
    assert "attention" not in lora["parts"]  # β is 0
    # checkpointing: 2·h·s of each layer, and one layer whole
    assert lora["parts"]["activations"] == 24 * 2 * 1024 * 2048 + 34 * 1024 * 2048


def test_names_of_other_families_and_nested_configs() -> None:
    gpt2 = {"n_layer": 12, "n_embd": 768, "n_head": 12, "vocab_size": 50257}
    assert sizes_of(gpt2) == sizes_of({"model_type": "x", "text_config": gpt2})
    with pytest.raises(PlanError, match="has no num_attention_heads"):
        sizes_of({"num_hidden_layers": 2, "hidden_size": 8, "vocab_size": 9})


def test_the_comparison_covers_the_whole_peak() -> None:
    parts = {"weights": 700, "activations": 200, "activation gradients": 50, "logits and loss": 40, "something new": 3}
    made = Plan(sum(parts.values()), 2000, 3000, parts, "step 2", {}, True, total_parameters=10)
    explained = closed_form(VALUES, Scenario(seq_len=64))
    rows = compared(made, explained)
    assert sum(row["exact"] for row in rows) == made.allocated_peak_bytes
    assert sum(row["closed"] for row in rows) == explained["total_bytes"]
    out = io.StringIO()
    Console(file=out, width=100).print(explain(made, explained))
    text = out.getvalue()
    assert "closed form" in text and "logits and loss" in text and "no embeddings" in text and "the rest" in text


def test_a_model_that_cannot_be_traced_is_answered_and_labelled() -> None:
    made = untraced_plan(VALUES, Scenario(seq_len=512), GPU, "the code of x does not run: boom")
    assert "BY THE CLOSED FORM ONLY" in made.notes[0] and "boom" in made.notes[0]
    assert sum(made.parts.values()) == made.allocated_peak_bytes < made.smi_peak_bytes and not made.fits
    tight = untraced_plan(VALUES, Scenario(seq_len=512, tuning="full", weights="fp32"), GPU, "boom")
    assert tight.trained_parameters == tight.total_parameters == 301_989_888 + 2 * 50272 * 1024
    assert tight.parts["optimizer states"] == 8 * tight.trained_parameters
    with pytest.raises(PlanError, match="boom; and the config has no"):
        untraced_plan({"model_type": "x"}, Scenario(), GPU, "boom")


@pytest.mark.parametrize("name", PUBLISHED)
def test_experts_are_counted(name: str) -> None:
    values = json.loads((CONFIGS / f"{name}.json").read_text())
    made = untraced_plan(values, Scenario(seq_len=512, weights="nf4"), GPU, "boom")
    whole = made.total_parameters - made.trained_parameters
    assert whole == pytest.approx(PUBLISHED[name], rel=0.1)
    assert 0.5 * PUBLISHED[name] < made.parts["weights"] < 0.75 * PUBLISHED[name]
    assert not made.fits


def test_no_verdict_by_the_closed_form() -> None:
    made = untraced_plan(VALUES, Scenario(seq_len=512), GPU, "boom")
    view = View("x", "one row", made, "a card", GPU.usable_bytes, GPU.context_bytes)
    assert verdict(view).startswith("by the closed form only, not traced: no verdict for a card: about ")
    assert as_dict(view)["fits"] is None
    assert advice(view) == []
