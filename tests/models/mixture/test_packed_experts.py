"""Experts in few bits: exactly the plain loop over unpacked experts, stored as planned, and no other model is touched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear, silu

import fitune
from fitune.adapters import in_memory
from fitune.adapters.base_snapshot import base_tensors
from fitune.adapters.inject import attach, experts_note, lora_config
from fitune.config.sections import Settings
from fitune.errors import ModelError
from fitune.exporting.export import export
from fitune.models.mixture.experts import expert_parameters, experts_of_a, experts_of_b, is_placeholder
from fitune.models.mixture.packed_experts import unpacked
from fitune.models.quantization.quantize import (
    QuantizationConfig,
    experts_left,
    keep_standard_layout,
    numel,
    quantize_in_place,
    stored_bytes,
    unquantized_layers,
)
from fitune.planning.predict import Card, predict
from fitune.planning.scenario import Scenario

WIDE = {"hidden_size": 64, "intermediate_size": 64}
FAMILIES = {
    "mixtral": WIDE,
    "qwen3_moe": {**WIDE, "moe_intermediate_size": 64},
    "glm4_moe": {**WIDE, "moe_intermediate_size": 64},
    "gpt_oss": WIDE,
}
KINDS = ("nf4", "fp4", "int8")
TOKENS = torch.arange(3, 35).reshape(2, 16)


def loaded(folder: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def packed(folder: Any, kind: str, double_quant: bool = False) -> Any:
    model = loaded(folder)
    quantize_in_place(model, QuantizationConfig(kind, double_quant), torch.float32, "cpu")
    keep_standard_layout(model)
    return model


def moved(model: Any, rank: int = 4) -> Any:
    torch.manual_seed(0)
    adapted = attach(model, lora_config(model, rank=rank, alpha=2 * rank))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.1)
    return adapted


@pytest.mark.parametrize("rank", [4, 3])  # of 3 numbers a row is not aligned, and ΔW is made whole
@pytest.mark.parametrize("kind", KINDS)
def test_as_a_loop_over_unpacked_experts(tiny_model, kind, rank):
    adapted = moved(packed(tiny_model("mixtral", **WIDE), kind), rank)
    outer = adapted.get_base_model().model.layers[0].mlp.experts
    experts = outer.get_base_layer()
    torch.manual_seed(1)
    hidden = torch.randn(6, 64, requires_grad=True)
    chosen, weights = torch.tensor([[0, 1], [3, 2], [1, 2], [0, 3], [2, 0], [0, 1]]), torch.rand(6, 2)
    factors = {}
    for wrapper in (outer, outer.base_layer):
        a, b = wrapper.lora_A["default"].weight, wrapper.lora_B["default"].weight
        factors[wrapper.parameter_name] = (a, b)
    stacks = {
        name: unpacked(experts, name) + 2 * experts_of_b(b, rank) @ experts_of_a(a, rank)
        for name, (a, b) in factors.items()
    }
    rows = []
    for token in range(6):
        row = torch.zeros(64)
        for expert, weight in zip(chosen[token], weights[token], strict=True):
            gate, up = linear(hidden[token], stacks["gate_up_proj"][expert]).chunk(2)
            row = row + weight * linear(silu(gate) * up, stacks["down_proj"][expert])
        rows.append(row)
    expected = torch.stack(rows)
    wanted = [hidden, *(tensor for pair in factors.values() for tensor in pair)]
    slopes = torch.autograd.grad(expected.square().sum(), wanted)
    result = outer(hidden, chosen, weights)
    assert torch.allclose(result, expected, atol=1e-6)
    for own, loop in zip(torch.autograd.grad(result.square().sum(), wanted), slopes, strict=True):
        assert torch.allclose(own, loop, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_model_is_that_of_the_unpacked_weights(tiny_model, family):
    folder = tiny_model(family, **FAMILIES[family])
    few, plain = packed(folder, "nf4").eval(), packed(folder, "nf4").eval()
    assert all(is_placeholder(parameter) for parameter in expert_parameters(few).values())
    for name, module in list(plain.named_modules()):
        if type(module).__name__.endswith("Experts"):
            for own, parameter in list(module.named_parameters(recurse=False)):
                if is_placeholder(parameter):
                    parameter.data = unpacked(module, own)
                    del module._modules[f"{own}_packed"]
            assert name
    with torch.no_grad():
        assert torch.allclose(few(TOKENS).logits, plain(TOKENS).logits, atol=1e-5)
        assert (few(TOKENS).logits - loaded(folder).eval()(TOKENS).logits).abs().max() > 1e-4


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_as_planned(tiny_model, kind, double):
    if double and kind == "int8":
        pytest.skip("int8 has no second quantization")
    folder = tiny_model("qwen3_moe", **FAMILIES["qwen3_moe"])
    model = packed(folder, kind, double)
    dense = loaded(folder)
    assert sum(numel(parameter) for parameter in model.parameters()) == dense.num_parameters()
    scenario = Scenario(weights=kind, double_quant=double, compute="fp32", autocast="none", seq_len=16)
    planned = predict(dense.config, scenario, Card("a card", 2**34, (8, 0), 0))
    assert planned.total_parameters - planned.trained_parameters == dense.num_parameters()
    stored = stored_bytes(model)
    tensors = len(base_tensors(model))
    assert 0 < planned.parts["weights"] - stored < 512 * tensors  # CUDA's allocator gives multiples of 512 bytes
    assert stored < 0.8 * stored_bytes(dense)
    assert "experts" not in " ".join(unquantized_layers(model))
    assert experts_left(model, "fp32") is None


def test_trained_and_exported(tiny_model, backwards, tmp_path, capfd):
    folder = tiny_model("mixtral", **WIDE)
    settings = {
        "fit": "off",
        "model": {"name": str(folder), "precision": "fp32", "device": "cpu", "quantization": "nf4"},
        "data": {"train": str(backwards), "eval_share": 0.2},
        "train": {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2},
        "run": {"folder": str(tmp_path / "runs"), "name": "one"},
    }
    result = fitune.train(Settings.model_validate(settings))
    told = capfd.readouterr().err
    assert "12 linear layers are stored in nf4" in told
    assert "the experts (57.0%) among them" in told
    rows = export(str(result.folder), "merged", device="cpu", num_prompts=2).report.rows
    assert [row.copy for row in rows] == ["adapter over the 16-bit base", "merged", "exported, merged"]
    assert abs(rows[1].largest - rows[0].largest) < 1e-5


def test_nothing_is_merged_into_few_bits_and_the_note_counts_them(tiny_model):
    adapted = moved(packed(tiny_model("mixtral", **WIDE), "nf4"))
    note = experts_note(adapted)
    assert note is not None
    assert "the experts (57.0%) among them" in note
    with pytest.raises(ModelError, match="experts are stored in few bits, into which nothing can be merged"):
        in_memory.merge(adapted)


def test_experts_that_the_interface_does_not_compute_are_told(tiny_model):
    model = packed(tiny_model("mixtral", **WIDE), "nf4")
    assert experts_left(model, "bf16") is None
    assert (experts_left(loaded(tiny_model("mixtral", **WIDE)), "bf16") or "").startswith(
        "the experts, 0.4 MB of the base"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_rows_that_are_no_multiple_of_a_block_are_unpacked_rightly(tiny_model, kind):
    folder = tiny_model("mixtral")  # rows of 16 and 32 numbers
    dense, few = loaded(folder), packed(folder, kind)
    error = {"nf4": 0.16, "fp4": 0.26, "int8": 0.005}[kind]
    for name, stack in expert_parameters(dense).items():
        place, _, own = name.rpartition(".")
        back = unpacked(few.get_submodule(place), own)
        assert (back - stack).abs().max() < error * stack.abs().max()
