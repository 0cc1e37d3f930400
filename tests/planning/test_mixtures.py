"""Plans of published mixtures and multimodal models: traced, with the parameters that they are published with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fitune.planning.scenario import Scenario
from fitune.planning.trace.dry_run import build_skeleton
from fitune.planning.trace_cache import as_config, cached_trace

CONFIGS = Path(__file__).parent / "configs"
# As their model cards and the indexes of their weight files count them.
PUBLISHED = {
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    "mixtral-8x7b": 46_702_792_704,
    "olmoe-1b-7b": 6_919_161_856,
    "qwen1.5-moe-a2.7b": 14_315_784_192,
    "phi-3.5-moe": 41_873_153_344,
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v3": 671_026_404_352,
    "glm-4.5": 355_000_000_000,
    "gemma-3-4b-it": 4_300_079_472,
    "gemma-3-27b-it": 27_432_406_640,
    "mistral-small-3.1-24b": 24_011_361_280,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen3-vl-8b": 8_767_123_696,
    "llava-1.5-7b": 7_063_427_072,
    "llama-3.2-11b-vision": 10_670_220_835,
    "smolvlm-2.2b": 2_246_272_880,
}
# Traced in the tests; all are in docs/plan.md.
TRACED = ("gpt-oss-20b", "qwen3-30b-a3b", "mixtral-8x7b", "olmoe-1b-7b", "gemma-3-4b-it", "mistral-small-3.1-24b")


def values_of(name: str, **changed: object) -> dict[str, object]:
    values = json.loads((CONFIGS / f"{name}.json").read_text())
    values.pop("quantization_config", None)
    return {**values, **changed}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_published(name):
    model = build_skeleton(as_config(values_of(name)), Scenario(attention="sdpa"))
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(PUBLISHED[name], rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_they_are_traced(name):
    traced = cached_trace(values_of(name), Scenario(weights="nf4", rows="padded", seq_len=256), (8, 0))
    base = traced["total_parameters"] - traced["trained_parameters"]
    assert base == pytest.approx(PUBLISHED[name], rel=0.01)
    weights = sum(size for size, kind in zip(traced["sizes"], traced["categories"], strict=True) if kind == "weights")
    assert weights > 0.5 * base
    assert not traced["notes"]


def test_gpt_oss_is_traced_padded_and_says_why(tmp_path):
    from fitune.api.plan_question import ask

    path = tmp_path / "config.json"
    few = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]}
    path.write_text(json.dumps(values_of("gpt-oss-20b", **few)))
    given = {"data_file": None, "gpu_name": "RTX 4090", "budget": None, "seq_len": 128, "expandable_segments": False}
    asked = ask(str(path), [], {"model.quantization": "nf4"}, given)
    scenario = asked.scenario()
    made = asked.plan(scenario)
    assert scenario.rows == "padded"
    assert any("sinks" in note for note in asked.notes)
    assert made.traced
    assert made.notes == ()
    experts, rest = 2 * 32 * 3 * 2880 * 2880, 2 * 201088 * 2880 + 2 * (4096 * 2880 * 2 + 2 * 512 * 2880)
    assert made.total_parameters - made.trained_parameters == pytest.approx(experts + rest, rel=0.01)
    # In the step, everything beside the weights included; while a stack is packed, it is there in 16 bits too.
    assert made.phases["step 2"]["allocated_bytes"] < 2 * experts + 2 * rest
