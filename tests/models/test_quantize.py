"""Quantized bases: which layers, how large, what the plan thinks of them, and that they train."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

import fitune
from fitune.adapters.adapter_folder import base_facts, load_adapter, save_adapter
from fitune.adapters.inject import attach, lora_config, trained_share
from fitune.config.settings_loader import load_settings
from fitune.errors import ModelError, SettingsError
from fitune.evaluation.inference_model import open_target
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, build_on_meta, load_base
from fitune.models.quantization.quantize import (
    NO_QUANTIZATION,
    QuantizationConfig,
    bnb_config,
    dense_weight,
    quantized_layers,
    refuse_full_tuning,
    stored_bytes,
    unquantized_layers,
)
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer
from fitune.planning.scenario import Scenario
from fitune.planning.trace.dry_run import quantize_skeleton

KINDS = {
    "int8": QuantizationConfig("int8"),
    "nf4": QuantizationConfig("nf4"),
    "nf4 double": QuantizationConfig("nf4", double_quant=True),
    "fp4": QuantizationConfig("fp4"),
}
FAMILIES = [
    "llama",
    "mistral",
    "phi3",
    "olmo2",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gpt_neox",
    "gpt2",
    "opt",
    "falcon",
]


# Rows of whole blocks of 64 weights; the tests' usual 32 is what bitsandbytes' CPU kernel computes wrongly.
WIDE: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_inner": 128},
    "opt": {"hidden_size": 64, "ffn_dim": 128, "word_embed_proj_dim": 64},
    **{family: {"head_dim": 16} for family in ("qwen3", "gemma", "gemma2")},
}


@pytest.fixture(scope="session")
def wide(tiny_model: Callable[..., Path]) -> Callable[..., Path]:
    """`wide(family)` → folder of a tiny model with 64 hidden and 128 inner units."""

    def make(family: str = "llama", **options: Any) -> Path:
        sizes = {} if family == "gpt2" else {"hidden_size": 64}
        sizes |= {} if family in ("gpt2", "opt", "falcon") else {"intermediate_size": 128}
        return tiny_model(family, **{**sizes, **WIDE.get(family, {}), **options})

    return make


@pytest.fixture(scope="session")
def llama(wide: Callable[..., Path]) -> Path:
    """A Llama with tied embeddings, as SmolLM2's are."""
    return wide("llama", tie_word_embeddings=True)


def open_quantized(
    folder: Path, quantization: QuantizationConfig = NO_QUANTIZATION, dtype: torch.dtype = torch.bfloat16
) -> LoadedBase:
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    template, precision = resolve_template(tokenizer), Precision(dtype, "test")
    return load_base(source, tokenizer, template, detect("cpu"), precision, quantization=quantization)


def some_ids() -> torch.Tensor:
    """Two rows of nine tokens, shape BS."""
    return torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(some_ids()).logits.float()


def train(model: Any, steps: int = 2) -> None:
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16):
            scores = model(some_ids()).logits
        torch.nn.functional.cross_entropy(scores.float().flatten(0, 1), some_ids().flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_quantizes_the_same_layers(wide: Callable[..., Path], family: str, kind: str):
    """The plan's skeleton against what transformers' own loader made."""
    folder = wide(family)
    loaded = open_quantized(folder, KINDS[kind]).model
    meta = build_on_meta(AutoConfig.from_pretrained(folder), torch.bfloat16)
    quantize_skeleton(meta, Scenario(weights=KINDS[kind].kind, double_quant=KINDS[kind].double_quant))
    assert quantized_layers(loaded) == quantized_layers(meta) != []


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_head_embeddings_and_norms_stay(wide: Callable[..., Path], family: str):
    model = open_quantized(wide(family), KINDS["nf4"]).model
    kept = [model.get_submodule(name) for name in unquantized_layers(model)]
    assert model.get_input_embeddings() in kept and model.get_output_embeddings() in kept
    assert {weight.dtype for module in kept for weight in module.parameters(recurse=False)} == {torch.bfloat16}


def test_named_layers_stay_and_the_head_with_them(llama: Path):
    """Naming a layer takes transformers' own exceptions away; they are named again."""
    model = open_quantized(llama, QuantizationConfig("nf4", unquantized=("down_proj",))).model
    names = {name.split(".")[-1] for name in quantized_layers(model)}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"}
    with pytest.raises(ModelError, match=r'"down_prj".*did you mean "down_proj".*linear layers are: down_proj, gate'):
        open_quantized(llama, QuantizationConfig("nf4", unquantized=("down_prj",)))


def test_stored_bytes_by_hand(llama: Path):
    """hidden 64, inner 128, two layers: q, o 64×64; k, v 32×64; gate, up, down 128×64 = 36,864 weights a layer.

    NF4 keeps half a byte a weight, an fp32 scale for 64 weights, and 16 fp32 levels a layer.
    """
    dense, packed = open_quantized(llama).model, open_quantized(llama, KINDS["nf4"]).model
    weights, layers = 2 * 36_864, 14
    assert stored_bytes(dense) - stored_bytes(packed) == 2 * weights - (weights // 2 + 4 * weights // 64 + 64 * layers)
    octets = open_quantized(llama, KINDS["int8"]).model
    rows = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)
    assert stored_bytes(dense) - stored_bytes(octets) == 2 * weights - (weights + 4 * rows)


@pytest.mark.parametrize(("kind", "largest"), [("int8", 1 / 127), ("nf4", 0.152), ("fp4", 0.17), ("nf4 double", 0.17)])
def test_error_of_a_weight_is_bounded_by_the_widest_gap(llama: Path, kind: str, largest: float):
    """|error| / absmax of the row (int8) or block of 64: half the widest gap between levels, and bf16's rounding.

    NF4 (QLoRA, appendix E): −1 to −0.6962, half is 0.152. FP4: 2/3 to 1, half is 0.167. int8: 1/127, half is 0.004.
    """
    dense, packed = open_quantized(llama).model, open_quantized(llama, KINDS[kind]).model
    for name in quantized_layers(packed):
        exact, rough = (dense_weight(model.get_submodule(name)).float() for model in (dense, packed))
        blocks = exact.abs() if kind == "int8" else exact.reshape(-1, 64).abs()
        error = (exact - rough).reshape(blocks.shape).abs() / blocks.amax(1, keepdim=True)
        assert 0 < error.max() < largest * 1.02, name


def test_rows_of_broken_blocks_stay_unquantized_on_a_cpu(tiny_model: Callable[..., Path]):
    base = open_quantized(tiny_model("llama", hidden_size=64, intermediate_size=96), KINDS["nf4"])
    assert {name.split(".")[-1] for name in unquantized_layers(base.model)} >= {"down_proj", "lm_head"}
    assert any("2 layers whose input size is not a multiple of 64 stay in bf16" in note for note in base.notes)


def test_why_they_stay():
    """bitsandbytes 0.50 begins a block with each row. Where this is skipped, the exception can go."""
    import bitsandbytes as bnb

    weight = torch.randn(4, 96, generator=torch.Generator().manual_seed(0))
    packed, state = bnb.functional.quantize_4bit(weight, quant_type="nf4", blocksize=64)
    halves = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], 1).flatten().long()
    by_hand = (state.code[halves] * state.absmax.repeat_interleave(64)).reshape(4, 96)
    assert (by_hand - weight).abs().max() < 0.153 * weight.abs().max()
    if torch.equal(bnb.functional.dequantize_4bit(packed, state), by_hand):
        pytest.skip("this machine's kernel unpacks them rightly")


@pytest.mark.parametrize("kind", KINDS)
def test_trains_after_an_evaluation_and_comes_back(llama: Path, tmp_path: Path, kind: str):
    """An evaluation first, as runs do: bitsandbytes' CPU layout would cut the gradient of every layer below."""
    base = open_quantized(llama, KINDS[kind])
    before = logits(base.model)
    torch.manual_seed(0)
    model = attach(base.model, lora_config(base.model, rank=4, alpha=8))
    torch.testing.assert_close(logits(model), before, atol=0, rtol=0)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}
    train(model)
    still = [name for name, weight in model.named_parameters() if name in start and torch.equal(weight, start[name])]
    assert not still
    after = logits(model)
    assert (after - before).abs().max() > 0.1
    save_adapter(model, base.tokenizer, base.template, tmp_path / "a", base_facts(base))
    again = load_adapter(open_quantized(llama, KINDS[kind]).model, tmp_path / "a")
    torch.testing.assert_close(logits(again), after, atol=0, rtol=0)
    facts = json.loads((tmp_path / "a" / "fitune.json").read_text())
    assert QuantizationConfig.from_dict(facts["quantization"]) == KINDS[kind]


def test_all_parameters_are_counted(llama: Path):
    plain, packed = open_quantized(llama).model, open_quantized(llama, KINDS["nf4"]).model
    assert trained_share(packed)[1] == trained_share(plain)[1] == sum(weight.numel() for weight in plain.parameters())


def test_a_gguf_file_is_quantized_as_its_folder_is(tiny_llama: Path, tiny_gguf: Path):
    folder, file = (open_quantized(path, KINDS["int8"]).model for path in (tiny_llama, tiny_gguf))
    torch.testing.assert_close(logits(file), logits(folder), atol=0, rtol=0)


def test_a_quantized_folder_is_neither_quantized_again_nor_trained_in_full(llama: Path, tmp_path: Path):
    packing = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.float32,
        bnb_4bit_quant_storage="uint8",
    )
    saved = AutoModelForCausalLM.from_pretrained(llama, quantization_config=packing, dtype=torch.float32)
    saved.save_pretrained(tmp_path)
    load_tokenizer(resolve(str(llama))).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is quantized already"):
        open_quantized(tmp_path, KINDS["int8"])
    again = open_quantized(tmp_path).model
    torch.testing.assert_close(logits(again).float(), logits(saved).float(), atol=1e-2, rtol=0)
    with pytest.raises(ModelError, match=r"use train\.tuning lora"):
        refuse_full_tuning(again, "it")


def test_what_quantized_layers_cannot_do_is_refused(llama: Path):
    model = open_quantized(llama, KINDS["nf4"]).model
    with pytest.raises(ModelError, match=r"q_proj, which is quantized.*model\.unquantized"):
        lora_config(model, modules_to_save=["q_proj"])
    with pytest.raises(ModelError, match="pissa"):
        lora_config(model, init="pissa")


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (
            {"model.quantization": "nf4", "train.tuning": "full"},
            "quantized weights cannot be trained. Use train.tuning lora",
        ),
        ({"model.double_quant": "true"}, "model.quantization is none, which has no block scales; use nf4 or fp4"),
        ({"model.double_quant": "true", "model.quantization": "int8"}, "is int8, which has no block scales"),
        ({"model.unquantized": "down_proj"}, "is set, and model.quantization is none"),
        ({"model.quantization": "nf4", "lora.init": "pissa"}, "lora.init is pissa, which moves"),
    ],
)
def test_settings_that_do_not_go_together(given: dict[str, str], fault: str):
    with pytest.raises(SettingsError, match=fault.replace(".", r"\.")):
        load_settings(None, given)


def test_compute_type_is_the_precision(llama: Path):
    meta = build_on_meta(AutoConfig.from_pretrained(llama), torch.float16)
    assert bnb_config(KINDS["nf4"], torch.float16, meta).bnb_4bit_compute_dtype is torch.float16


@pytest.mark.parametrize("kind", ["int8", "nf4 double"])
def test_a_whole_run(llama: Path, tmp_path: Path, kind: str):
    """`fitune train` over a quantized base: the result is opened over the same base and answers as it was measured."""
    rows = [{"prompt": f"the pig {word}", "completion": f"{word} away"} for word in ("eats", "slid", "glue", "well")]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    settings = load_settings(
        None,
        {
            "model.name": str(llama), "model.precision": "bf16", "model.device": "cpu",
            "model.quantization": KINDS[kind].kind, "model.double_quant": KINDS[kind].double_quant,
            "data.train": str(data), "data.eval_share": 0.25, "train.max_steps": 3, "train.learning_rate": 1e-2,
            "eval.samples": 0, "run.folder": str(tmp_path / "runs"), "run.name": "q",
        },
    )  # fmt: skip
    result = fitune.train(settings)
    assert result.status == "finished" and result.saved is not None
    assert result.after["loss"] < result.before["loss"]
    target = open_target(str(result.folder), device="cpu", precision="bf16")
    assert len(quantized_layers(target.model)) == 14
