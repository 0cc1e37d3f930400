"""The dry run on tiny models: its sums, its order, and that every family's own code runs through it."""

from __future__ import annotations

from typing import Any

import pytest

from fitune.planning.predict import Card, Plan, assemble
from fitune.planning.scenario import Scenario

CARD = Card("test", 2**40, (8, 0), 500 * 2**20)
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
GROUPED: dict[str, Any] = {**SIZES, "num_key_value_heads": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 320, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "opt": {**SIZES, "ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
    "gpt_neox": SIZES,
    "falcon": {**SIZES, "multi_query": True, "new_decoder_architecture": False},
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 16},
    "gemma2": {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16},
    "gemma3_text": {**GROUPED, "head_dim": 16, "query_pre_attn_scalar": 16},
    "phi3": {**GROUPED, "pad_token_id": 0},
    "olmo2": GROUPED,
    "deepseek_v3": {  # queries and keys are wider than values
        **SIZES,
        "num_key_value_heads": 4,
        "q_lora_rank": 32,
        "kv_lora_rank": 32,
        "qk_nope_head_dim": 24,
        "v_head_dim": 16,
        "qk_rope_head_dim": 8,
        "head_dim": 8,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
    },
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {**GROUPED, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
}
BASE = Scenario(seq_len=128, rank=4)
PACKED = BASE.but(rows="packed", attention="flash_attention_2", gradient_checkpointing=True)


def plan(scenario: Scenario = BASE, family: str = "llama", expandable: bool = False, **config: Any) -> Plan:
    """A prediction without the cache."""
    from fitune.planning.trace_cache import make_trace

    values = {"model_type": family, **FAMILIES[family], **config}
    return assemble(make_trace(values, scenario, CARD.capability), CARD, expandable)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_traced(family: str) -> None:
    made = plan(family=family)
    assert sum(made.parts.values()) == made.allocated_peak_bytes
    assert made.allocated_peak_bytes <= made.reserved_peak_bytes < made.smi_peak_bytes
    assert made.parts["weights"] > 0 and made.parts["optimizer states"] > 0


SCENARIOS = {
    "full": {"weights": "fp32", "tuning": "full"},
    "full in 16 bits": {"tuning": "full", "trained_dtype": "same", "autocast": "none", "optimizer": "adamw_foreach"},
    "checkpointing": {"gradient_checkpointing": True},
    "rewards": {"loss": "rewards", "rows": "packed", "attention": "flash_attention_2"},
    "pairs": {"loss": "pairs", "label_share": 0.3, "rows": "packed", "attention": "flash_attention_2"},
    "pairs, padded": {"loss": "pairs", "label_share": 0.3, "rows": "padded", "batch": 4},
    "reentrant checkpointing": {"gradient_checkpointing": True, "reentrant": True},
    "nf4": {"weights": "nf4", "kbit_preparation": True, "loss": "logits"},
    "int8": {"weights": "int8"},
    "eager": {"attention": "eager"},
    "padded": {"rows": "padded", "batch": 2},
    "packed": {"rows": "packed"},
    "adafactor": {"optimizer": "adafactor"},
    "accumulation": {"accumulation": 2, "gradient_checkpointing": True},
    "evaluation and generation": {
        "eval_batch": 2, "generate_batch": 2, "prompt_tokens": 16, "new_answer_tokens": 8, "save": True,
    },
    "norms, biases, DoRA": {"train_norms": True, "bias": "all", "dora": True},
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_axis_is_traced_and_the_parts_add_up(name: str) -> None:
    made = plan(BASE.but(**SCENARIOS[name]))
    assert sum(made.parts.values()) == made.allocated_peak_bytes
    assert made.moment


@pytest.mark.parametrize("name", [*SCENARIOS, "gpt2", "gemma2", "mixtral"])
def test_a_step_written_down_again_is_the_step_run_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from fitune.planning.trace.recorder import Recorder

    scenario, family = (BASE.but(**SCENARIOS[name]), "llama") if name in SCENARIOS else (BASE, name)
    plan(scenario, family)  # what libraries make at their first use in a process is no part of the comparison
    repeated, answers = plan(scenario, family), []
    repeat = Recorder.repeat
    monkeypatch.setattr(Recorder, "repeat", lambda self, *args, **names: answers.append(repeat(self, *args, **names)))
    plan(scenario, family)
    monkeypatch.setattr(Recorder, "repeat", lambda self, *args, **names: False)
    # bitsandbytes keeps outliers and scales of its int8 products from one step to the next: run again.
    assert answers == [name != "int8"]
    assert plan(scenario, family) == repeated


@pytest.mark.parametrize("name", ["nf4", "int8"])
def test_after_a_trace_the_same_process_still_quantizes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `fit: auto` does: it plans a quantized run, then trains it. bitsandbytes' table for the process is its own."""
    import bitsandbytes
    import torch

    monkeypatch.setattr(bitsandbytes.functional, "name2qmap", {})
    plan(BASE.but(**SCENARIOS[name]))
    values = torch.randn(64, 64)
    packed, state = bitsandbytes.functional.quantize_4bit(values, quant_type="nf4", compress_statistics=True)
    assert (bitsandbytes.functional.dequantize_4bit(packed, state) - values).abs().max() < 0.5
    layer = bitsandbytes.nn.Linear8bitLt(64, 64, has_fp16_weights=False)
    assert layer.to("cpu")(values).device.type == "cpu"


def test_a_step_that_leaves_more_behind_is_run_again() -> None:
    kept = plan(BASE.but(loss="logits", keep_outputs=True))
    assert kept.phases["step 2"]["allocated_bytes"] > kept.phases["step 1"]["allocated_bytes"]
    logits = BASE.seq_len * SIZES["vocab_size"]
    assert kept.allocated_peak_bytes - plan(BASE.but(loss="logits")).allocated_peak_bytes >= logits


def test_weights_and_states_are_what_arithmetic_says() -> None:
    made = plan(BASE.but(weights="fp32", tuning="full", autocast="none", gradient_checkpointing=True))
    exact = made.total_parameters * 4
    # Blocks round up to 512 B, and the fused AdamW keeps one step count a tensor.
    assert exact <= made.parts["weights"] <= 1.05 * exact
    assert 2 * exact <= made.parts["optimizer states"] <= 1.15 * 2 * exact


def test_the_same_question_has_the_same_answer() -> None:
    assert plan().to_dict() == plan().to_dict()


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"batch": 1}, {"batch": 3}),
        ({"seq_len": 64}, {"seq_len": 192}),
        ({"rank": 4}, {"rank": 32}),
        ({"label_share": 0.25}, {"label_share": 1.0}),
        ({"weights": "bf16"}, {"weights": "fp32"}),
        ({"optimizer": "sgd"}, {"optimizer": "adamw"}),
        ({"gradient_checkpointing": True}, {"gradient_checkpointing": False}),
        ({"rows": "full", "batch": 2}, {"rows": "padded", "batch": 2}),
        ({"attention": "sdpa", "seq_len": 256}, {"attention": "eager", "seq_len": 256}),
        ({"loss": "labels", "label_share": 0.1}, {"loss": "logits"}),
    ],
)
def test_more_is_never_less(less: dict[str, Any], more: dict[str, Any]) -> None:
    assert plan(BASE.but(**less)).allocated_peak_bytes <= plan(BASE.but(**more)).allocated_peak_bytes


def test_more_layers_are_never_less() -> None:
    peaks = [plan(num_hidden_layers=layers).allocated_peak_bytes for layers in (1, 2, 4)]
    assert peaks == sorted(peaks)


def test_checkpointing_keeps_fewer_activations() -> None:
    long = BASE.but(seq_len=256)
    with_it, without = plan(long.but(gradient_checkpointing=True)), plan(long)
    assert with_it.parts.get("activations", 0) < without.parts["activations"]


def test_a_run_that_never_steps_has_no_states() -> None:
    made = plan(BASE.but(optimizer_step=False))
    assert "optimizer states" not in made.parts


def test_evaluation_generation_and_checkpoint_are_phases_of_their_own() -> None:
    made = plan(BASE.but(**SCENARIOS["evaluation and generation"]))
    assert list(made.phases) == ["load", "step 1", "step 2", "evaluation", "generation", "checkpoint"]


def test_impossible_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="quantized weights cannot be trained"):
        Scenario(weights="int8", tuning="full")
    with pytest.raises(ValueError, match="seq_len is 0; use 1 or more"):
        Scenario(seq_len=0)
    with pytest.raises(ValueError, match="use one of"):
        Scenario(attention="fast")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_cached_answer_does_not_import_torch(tmp_path: Any) -> None:
    import json
    import os
    import subprocess
    import sys

    config = {"model_type": "llama", **GROUPED}
    code = (
        "import json,sys;from fitune.planning.predict import Card,predict;from fitune.planning.scenario import Scenario;"
        f"p=predict(json.loads({json.dumps(json.dumps(config))}),Scenario(seq_len=64),Card('c',2**36,(8,0),0));"
        "print(p.allocated_peak_bytes,'torch' in sys.modules)"
    )
    env = {**os.environ, "FITUNE_CACHE": str(tmp_path)}
    said = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], env=env, capture_output=True, text=True, check=True
        )
        for _ in range(2)
    ]
    first, second = (run.stdout.split() for run in said)
    assert first[0] == second[0]
    assert (first[1], second[1]) == ("True", "False")


def test_layer_inputs_on_the_host_are_counted_on_both_sides():
    """Eight layers of 8,192 × 64 in bf16, 1 MiB each: on the card two at a time, on the host all of them."""
    on_card, on_host = (
        plan(PACKED.but(seq_len=8192, tiled_mlp=True, activation_offloading=away), num_hidden_layers=8)
        for away in (False, True)
    )
    assert on_card.host_bytes == 0 and on_host.host_bytes == 8 * 2**20
    saved = on_card.allocated_peak_bytes - on_host.allocated_peak_bytes
    assert 5 * 2**20 <= saved <= 7 * 2**20


def test_tiles_leave_no_activations_of_the_inner_size():
    """Inner size 2,048 over 8,192 tokens is 32 MiB a tensor; a tile of 2,048 tokens is a quarter of it."""
    whole, tiled = (plan(PACKED.but(seq_len=8192, tiled_mlp=tiles), intermediate_size=2048) for tiles in (False, True))
    assert whole.allocated_peak_bytes - tiled.allocated_peak_bytes > 4 * 24 * 2**20
