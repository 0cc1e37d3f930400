"""LoRA over the experts of a mixture: what is adapted, exactly as a loop over the experts has it, and back out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import fitune
from fitune.adapters import in_memory
from fitune.adapters.adapter_folder import add_adapter, load_adapter
from fitune.adapters.base_snapshot import digests
from fitune.adapters.combine import combine
from fitune.adapters.inject import attach, experts_note, lora_config
from fitune.adapters.locate import lora_options
from fitune.adapters.storage import compare, describe
from fitune.errors import ModelError
from fitune.exporting.export import export
from fitune.models.mixture.experts import expert_parameters, experts_of_a, experts_of_b, saved_a, saved_b

MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "glm4_moe", "minimax", "qwen2_moe", "granitemoe", "gpt_oss")
TOKENS = torch.arange(3, 27).reshape(2, 12)


def model_of(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def moved(model: Any, seed: int = 0) -> Any:
    """A fresh adapter, moved away from its start."""
    torch.manual_seed(seed)
    adapted = attach(model, lora_config(model, rank=2, alpha=6)).eval()
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_" in name:
                weight.normal_(0, 0.3)
    return adapted


def saved_in(result: Any) -> Path:
    return result.folder / "adapter"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.fixture
def settings_over(backwards, tmp_path):
    """Settings of a run of three steps over a model's folder."""

    def make(folder: Path, name: str = "one", **lora: Any) -> Any:
        from fitune.config.sections import Settings

        return Settings.model_validate(
            {
                "fit": "off",
                "model": {"name": str(folder), "precision": "fp32", "device": "cpu"},
                "data": {"train": str(backwards), "eval_share": 0.2},
                "lora": {"rank": 2, **lora},
                "train": {"max_steps": 3, "batch_size": 4, "learning_rate": 1e-2},
                "eval": {"samples": 0},
                "run": {"folder": str(tmp_path / "runs"), "name": name},
            }
        )

    return make


def test_as_a_loop_over_the_experts(tiny_model):
    adapted = moved(model_of(tiny_model("mixtral")))
    inner = adapted.get_base_model().model.layers[0].mlp.experts
    experts, hidden = inner.get_base_layer(), torch.randn(5, 16)
    chosen, weights = torch.tensor([[0, 1], [3, 2], [1, 2], [0, 3], [2, 0]]), torch.rand(5, 2)
    matrices = {}
    for wrapper in (inner, inner.base_layer):
        a = experts_of_a(wrapper.lora_A["default"].weight, 2)
        b = experts_of_b(wrapper.lora_B["default"].weight, 2)
        stored = getattr(experts, wrapper.parameter_name)
        matrices[wrapper.parameter_name] = [stored[e] + 3.0 * b[e] @ a[e] for e in range(4)]
    expected = torch.zeros_like(hidden)
    for token in range(5):
        for expert, weight in zip(chosen[token], weights[token], strict=True):
            gate, up = (matrices["gate_up_proj"][expert] @ hidden[token]).chunk(2)
            expected[token] += weight * (matrices["down_proj"][expert] @ (torch.nn.functional.silu(gate) * up))
    assert torch.allclose(inner(hidden, chosen, weights), expected, atol=1e-6)


def test_the_layout_goes_there_and_back():
    a, b = torch.randn(12, 5), torch.randn(7, 12)
    assert torch.equal(saved_a(experts_of_a(a, 3)), a)
    assert torch.equal(saved_b(experts_of_b(b, 3)), b)


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_are_adapted_and_the_router_is_not(tiny_model, family):
    adapted = moved(model_of(tiny_model(family)))
    names = {name.rpartition(".lora_A.")[0] for name, _ in adapted.named_parameters() if ".lora_A." in name}
    assert sum(".experts" in name for name in names) == len(expert_parameters(adapted))
    assert not any(part in name.split(".")[-2:] for name in names for part in ("gate", "router", "shared_expert_gate"))
    note = experts_note(adapted)
    assert note is not None
    assert "the experts" in note
    assert "router is left alone" in note
    assert ("gate_proj" in note) == (family == "glm4_moe")


@pytest.mark.slow
@pytest.mark.parametrize("family", MIXTURES)
def test_trained_and_merged(tiny_model, settings_over, family):
    result = fitune.train(settings_over(tiny_model(family)))
    exported = export(str(result.folder), "merged", device="cpu", num_prompts=2)
    merged, stored = exported.report.rows
    assert merged.largest < 1e-5
    assert stored.largest < 0.5  # bf16; a tie of the router may turn on its rounding
    assert describe(saved_in(result))["parameters"]["experts"] > 0


def test_continued_and_combined(tiny_model, settings_over, capfd):
    folder = tiny_model("qwen3_moe")
    first = fitune.train(settings_over(folder, "first"))
    second = fitune.train(settings_over(folder, "second", continue_from=str(first.folder)))
    assert "the experts" in capfd.readouterr().err
    ranks = compare(saved_in(first), saved_in(second))["modules"]["experts"]
    assert ranks["cosine"] is not None
    assert 0.5 < ranks["cosine"] < 1
    model = load_adapter(model_of(folder), saved_in(first)).eval()
    add_adapter(model, saved_in(second), "second")
    one = logits(model)
    combine(model, [("default", 1e-9), ("second", 1.0)], "new")
    in_memory.use(model, "second")
    two = logits(model)
    in_memory.use(model, "new")
    assert not torch.allclose(one, two, atol=1e-5)
    assert torch.allclose(logits(model), two, atol=1e-5)


@pytest.mark.parametrize("kind", ["cat", "svd", "linear"])
def test_a_combination_is_the_sum_of_the_updates(tiny_model, kind):
    model = moved(model_of(tiny_model("mixtral")))
    model.add_adapter("b", lora_config(model_of(tiny_model("mixtral")), rank=2, alpha=6))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".b." in name:
                weight.normal_(0, 0.3)
    made = combine(model, [("default", 0.5), ("b", -0.25)], "new", kind, rank=4 if kind == "svd" else None)
    assert made.rank == (2 if kind == "linear" else 4)
    for _, module in model.named_modules():
        if type(module).__name__ == "ParamWrapper":
            wanted = 0.5 * module.get_delta_weight("default") - 0.25 * module.get_delta_weight("b")
            if kind != "linear":
                assert torch.allclose(module.get_delta_weight("new"), wanted, atol=1e-5)
            else:  # A and B are added apart
                assert module.get_delta_weight("new").shape == wanted.shape
    with pytest.raises(ModelError, match="lies over experts, which ties_svd does not know; use ties"):
        combine(model, [("default", 0.5), ("b", 0.5)], "other", "ties_svd")


def test_merged_in_memory_and_taken_out_again(tiny_model):
    model = model_of(tiny_model("qwen2_moe"))
    before = digests(model)
    adapted = moved(model)
    trained = logits(adapted)
    told = in_memory.merge(adapted)
    assert told.kept_bytes > 0
    assert torch.allclose(logits(adapted), trained, atol=1e-5)
    assert in_memory.unmerge(adapted).exact
    assert torch.equal(logits(adapted), trained)
    assert in_memory.unload(adapted, before)[1] == []


def test_another_model_is_refused_in_a_sentence(tiny_model, settings_over):
    result = fitune.train(settings_over(tiny_model("mixtral")))
    other = model_of(tiny_model("mixtral", intermediate_size=40))
    with pytest.raises(ModelError, match="belongs to another base"):
        load_adapter(other, saved_in(result))


def test_named_targets(tiny_model):
    model = model_of(tiny_model("qwen2_moe"))
    attention = lora_config(model, targets=["q_proj", "v_proj"])
    assert attention.target_parameters is None
    experts = lora_config(model, targets=["q_proj", "experts.down_proj", "w1"])
    assert experts.target_modules == {"q_proj"}
    assert len(experts.target_parameters or []) == 4
    shared = lora_config(model, targets=["down_proj"])
    assert (shared.target_modules, shared.target_parameters) == ({"down_proj"}, None)
    with pytest.raises(ModelError, match="gate_up_proj"):
        lora_config(model, targets=["gate_upproj"])
    note = experts_note(attach(model, attention))
    assert note is not None
    assert note.startswith("the experts, 36.1% of the parameters, are not adapted: lora.targets names none of them")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dropout": 0.1}, "lora.dropout is 0.1"),
        ({"dora": True}, "lora.dora is on"),
        ({"init": "pissa"}, "lora.init is pissa"),
    ],
)
def test_what_peft_cannot_do_over_experts_is_a_sentence(tiny_model, options, said):
    model = model_of(tiny_model("mixtral"))
    with pytest.raises(ModelError, match=f"{said}, which PEFT does not compute over this model's experts"):
        lora_config(model, **options)
    lora_config(model, targets=["q_proj"], **options)


def test_the_options_of_a_saved_adapter_name_its_experts(tiny_model, settings_over):
    result = fitune.train(settings_over(tiny_model("qwen2_moe")))
    options = lora_options(saved_in(result))
    again = lora_config(model_of(tiny_model("qwen2_moe")), targets=options["targets"])
    saved = json.loads((saved_in(result) / "adapter_config.json").read_text())
    assert set(again.target_parameters or []) == set(saved["target_parameters"])
    assert again.target_modules == set(saved["target_modules"])
