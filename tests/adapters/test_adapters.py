"""Every LoRA option trains a step, is saved, and gives the same logits when it is loaded again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from fitune.adapters.adapter_folder import base_facts, continue_adapter, load_adapter, save_adapter
from fitune.adapters.inject import attach, linear_names, lora_config, norm_names, trained_share
from fitune.errors import ModelError
from fitune.evaluation.inference_model import open_target
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, build_on_meta, load_base
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer

END = "<|endoftext|>"
BARE = {"specials": {"bos_token": END, "eos_token": END, "unk_token": END}, "template": None}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "two targets": {"targets": ["q_proj", "v_proj"]},
    "dropout": {"dropout": 0.1},
    "bias all": {"bias": "all"},
    "bias lora_only": {"bias": "lora_only"},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "norms": {"train_norms": True},
    "head": {"modules_to_save": ["lm_head"]},
    "gaussian": {"init": "gaussian"},
    "pissa": {"init": "pissa"},
    "pissa rslora": {"init": "pissa", "rslora": True},
    "debug": {"init": "debug"},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def open_base(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedBase:
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    return load_base(source, tokenizer, resolve_template(tokenizer), detect("cpu"), Precision(dtype, "test"))


def some_ids(base: LoadedBase) -> torch.Tensor:
    """Two rows of nine tokens, shape BS, the template's new tokens among them."""
    ids_BS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))
    for place, token in enumerate(base.new_token_ids):
        ids_BS[:, 2 + 3 * place] = token
    return ids_BS


def logits(model: Any, ids_BS: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(ids_BS).logits


def train(model: Any, ids_BS: torch.Tensor, steps: int = 2, dtype: torch.dtype = torch.float32) -> None:
    """AdamW under the Trainer's autocast."""
    model.train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
            scores = model(ids_BS).logits
        torch.nn.functional.cross_entropy(scores.float()[:, :-1].flatten(0, 1), ids_BS[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()


def adapt(base: LoadedBase, **options: Any) -> PeftModel:
    torch.manual_seed(0)
    return attach(base.model, lora_config(base.model, rank=4, alpha=8, new_token_ids=base.new_token_ids, **options))


def round_trip(folder: Path, out: Path, dtype: torch.dtype, **options: Any) -> tuple[torch.Tensor, ...]:
    """Logits of the base, after training, and after loading what was saved over a fresh base."""
    base = open_base(folder, dtype)
    ids_BS = some_ids(base)
    before = logits(base.model, ids_BS)
    model = adapt(base, **options)
    train(model, ids_BS, dtype=dtype)
    after = logits(model, ids_BS)
    save_adapter(model, base.tokenizer, base.template, out, base_facts(base))
    fresh = open_base(folder, dtype)
    return before, after, logits(load_adapter(fresh.model, out), ids_BS)


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_trains_and_comes_back(tiny_model, tmp_path: Path, option: str, precision: str):
    before, after, again = round_trip(
        tiny_model("llama", tie_word_embeddings=True), tmp_path / "a", DTYPES[precision], **OPTIONS[option]
    )
    assert (after - before).abs().max() > 0.1  # logits of the untrained model have a deviation of about 0.1
    if "pissa" in option:
        # The saved W + s(BA − B0A0) and the trained (W − sB0A0) + sBA differ by rounding: of fp32, of bf16.
        torch.testing.assert_close(again, after, atol=1e-6 if precision == "fp32" else 1e-2, rtol=0)
    else:
        torch.testing.assert_close(again, after, atol=0, rtol=0)


@pytest.mark.parametrize("family", ["gpt2", "opt", "qwen2", "gemma2", "phi3", "falcon"])
@pytest.mark.parametrize("option", ["plain", "bias all", "norms", "pissa"])
def test_families_in_bf16(tiny_model, tmp_path: Path, family: str, option: str):
    """Conv1D (gpt2), biases, LayerNorm and RMSNorm, fused projections, tied and untied heads."""
    before, after, again = round_trip(tiny_model(family), tmp_path / "a", torch.bfloat16, **OPTIONS[option])
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(again, after, atol=1e-2 if option == "pissa" else 0, rtol=0)


def test_frozen_weights_keep_their_type_and_trained_ones_are_fp32(tiny_llama: Path):
    base = open_base(tiny_llama, torch.bfloat16)
    model = adapt(base)
    types = {weight.requires_grad: weight.dtype for weight in model.parameters()}
    assert types == {True: torch.float32, False: torch.bfloat16}


def test_trained_share(tiny_llama: Path):
    """By hand: rank 4 over q, k, v, o (32→32, 32→16, 32→16, 32→32) and gate, up, down (32↔64), two layers."""
    base = open_base(tiny_llama)
    total = sum(weight.numel() for weight in base.model.parameters())
    trained = 2 * 4 * ((32 + 32) + (32 + 16) + (32 + 16) + (32 + 32) + 3 * (32 + 64))
    assert trained_share(adapt(base)) == (trained, total + trained)


def test_default_init_is_an_identity_and_debug_is_not(tiny_llama: Path):
    base = open_base(tiny_llama)
    ids_BS = some_ids(base)
    before = logits(base.model, ids_BS)
    torch.testing.assert_close(logits(adapt(base), ids_BS), before, atol=0, rtol=0)
    base = open_base(tiny_llama)
    assert (logits(adapt(base, init="debug"), ids_BS) - before).abs().max() > 1e-3


def test_pissa_starts_as_an_identity_and_a_second_save_is_the_same(tiny_llama: Path, tmp_path: Path):
    base = open_base(tiny_llama)
    ids_BS = some_ids(base)
    before = logits(base.model, ids_BS)
    model = adapt(base, init="pissa")
    torch.testing.assert_close(logits(model, ids_BS), before, atol=1e-5, rtol=0)
    train(model, ids_BS)
    for name in ("first", "second"):
        save_adapter(model, base.tokenizer, base.template, tmp_path / name, base_facts(base))
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("first", "second")]
    assert files[0] == files[1]
    assert model.peft_config["default"].r == 4  # the live model is untouched by the conversion


@pytest.mark.parametrize("rank", [4, 24])
def test_pissa_fills_the_rank_with_what_can_learn(tiny_llama: Path, tmp_path: Path, rank: int):
    """Over a layer of zeros, as blocks added to a trained model begin, and with k_proj and v_proj of 16 outputs."""
    bases = [open_base(tiny_llama) for _ in range(2)]
    for base in bases:
        base.model.get_submodule("model.layers.1.self_attn.o_proj").weight.data.zero_()
    base, ids_BS = bases[0], some_ids(bases[0])
    before = logits(base.model, ids_BS)
    torch.manual_seed(0)
    options: dict[str, Any] = {"init": "pissa", "new_token_ids": base.new_token_ids}
    model = attach(base.model, lora_config(base.model, rank=rank, alpha=2 * rank, **options))
    torch.testing.assert_close(logits(model, ids_BS), before, atol=1e-5, rtol=0)
    began = {name: weight.detach().clone() for name, weight in model.named_parameters() if ".lora_" in name}
    train(model, ids_BS)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            directions = 0 if ".lora_A." in name else 1
            assert weight.shape[directions] == rank
            assert ((weight - began[name]).abs().amax(dim=1 - directions) > 0).all(), name
    after = logits(model, ids_BS)
    save_adapter(model, base.tokenizer, base.template, tmp_path / "a", base_facts(base))
    again = logits(load_adapter(bases[1].model, tmp_path / "a"), ids_BS)
    torch.testing.assert_close(again, after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("spare_rows", [20, 0])
def test_only_the_new_rows_are_trained_on_both_sides(tiny_model, tmp_path: Path, spare_rows: int):
    """GPT-NeoX has an untied head: the new tokens' input rows and output rows learn, and no other row."""
    folder = tiny_model("gpt_neox", **BARE, spare_rows=spare_rows, tie_word_embeddings=False)
    base = open_base(folder)
    assert base.template.origin == "chatml" and len(base.new_token_ids) == 2
    ids_BS, new = some_ids(base), list(base.new_token_ids)
    model = adapt(base)
    sides = {"in": base.model.get_input_embeddings(), "out": base.model.get_output_embeddings()}
    layers: dict[str, Any] = {side: wrapper.token_adapter for side, wrapper in sides.items()}
    before = {name: layer.get_merged_weights(["default"]).clone() for name, layer in layers.items()}
    train(model, ids_BS)
    for name, layer in layers.items():
        moved = (layer.get_merged_weights(["default"]) - before[name]).abs().amax(1) > 0
        assert moved.nonzero().flatten().tolist() == new, name
    after = logits(model, ids_BS)
    save_adapter(model, base.tokenizer, base.template, tmp_path / "a", base_facts(base))
    fresh = open_base(folder)
    torch.testing.assert_close(logits(load_adapter(fresh.model, tmp_path / "a"), ids_BS), after, atol=0, rtol=0)


@pytest.mark.parametrize(("family", "spare_rows"), [("llama", 0), ("gpt_neox", 20), ("gpt_neox", 0)])
def test_the_folder_opens_in_plain_peft(tiny_model, tmp_path: Path, family: str, spare_rows: int):
    """Without fitune. A base whose rows were grown is first resized to the saved tokenizer, as PEFT users do."""
    more = BARE if family == "gpt_neox" else {}
    folder = tiny_model(family, **more, spare_rows=spare_rows)
    base = open_base(folder)
    ids_BS = some_ids(base)
    model = adapt(base)
    train(model, ids_BS)
    after = logits(model, ids_BS)
    save_adapter(model, base.tokenizer, base.template, tmp_path / "a", base_facts(base))

    plain = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "a")
    if len(tokenizer) > plain.get_input_embeddings().weight.shape[0]:
        assert spare_rows == 0 and family == "gpt_neox"
        plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    # Trained rows are multiplied beside the matrix, PEFT writes them into a copy of it: rounding.
    rounding = 1e-6 if family == "gpt_neox" else 0
    found = logits(PeftModel.from_pretrained(plain, tmp_path / "a"), ids_BS)
    torch.testing.assert_close(found, after, atol=rounding, rtol=0)
    assert tokenizer.chat_template == base.template.text


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"use_dora": True, "lora_dropout": 0.1}, {"bias": "all"}]
)
def test_a_plain_peft_adapter_opens_in_fitune(tiny_model, tmp_path: Path, options: dict[str, Any]):
    """As PEFT's own users save it: no tokenizer, no template, no fitune.json beside it; and it can be trained further."""
    folder = tiny_model("llama", tie_word_embeddings=True)
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM", **options)
    plain = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    ids_BS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))
    wanted = logits(plain, ids_BS)
    plain.save_pretrained(tmp_path / "a")
    target = open_target(str(tmp_path / "a"), device="cpu", precision="fp32")
    torch.testing.assert_close(logits(target.model, ids_BS), wanted, atol=0, rtol=0)
    again = continue_adapter(open_base(folder), tmp_path / "a")
    train(again, ids_BS)
    assert (logits(again, ids_BS) - wanted).abs().max() > 0.01


def test_what_is_saved_beside_the_adapter(tiny_gpt_neox: Path, tmp_path: Path):
    base = open_base(tiny_gpt_neox)
    model = adapt(base)
    save_adapter(model, base.tokenizer, base.template, tmp_path / "a", base_facts(base))
    facts = json.loads((tmp_path / "a" / "fitune.json").read_text())
    assert facts["base"]["name"] == str(tiny_gpt_neox)
    assert facts["template"]["added_tokens"] == ["<|im_start|>", "<|im_end|>"]
    stops = json.loads((tmp_path / "a" / "generation_config.json").read_text())["eos_token_id"]
    end_of_turn = base.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert set(stops) == {base.tokenizer.eos_token_id, end_of_turn} == set(base.stop_ids)
    assert not [entry.name for entry in tmp_path.iterdir() if entry.name != "a"]


def saved_adapter(folder: Path, out: Path) -> None:
    base = open_base(folder)
    save_adapter(adapt(base), base.tokenizer, base.template, out, base_facts(base))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"model_type": "qwen2"}, "model type"),
        ({"hidden_size": 64}, "hidden size"),
        ({"num_hidden_layers": 1}, "num layers"),
        ({"spare_rows": 8}, "embedding rows"),
        ({"seed": 1}, "weights"),
    ],
)
def test_another_base_is_refused(tiny_model: Callable[..., Path], tmp_path: Path, other: dict, reason: str):
    saved_adapter(tiny_model("llama"), tmp_path / "a")
    changed = dict(other)
    wrong = tiny_model(changed.pop("model_type", "llama"), **changed)
    with pytest.raises(ModelError, match=f"belongs to another base: its {reason}"):
        load_adapter(open_base(wrong).model, tmp_path / "a")


def test_the_same_base_in_another_precision_is_accepted(tiny_llama: Path, tmp_path: Path):
    saved_adapter(tiny_llama, tmp_path / "a")
    load_adapter(open_base(tiny_llama, torch.bfloat16).model, tmp_path / "a")


def test_a_damaged_or_pickled_adapter_is_refused(tiny_llama: Path, tmp_path: Path):
    saved_adapter(tiny_llama, tmp_path / "a")
    weights = tmp_path / "a" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="is damaged"):
        load_adapter(open_base(tiny_llama).model, tmp_path / "a")
    weights.rename(weights.with_name("adapter_model.bin"))
    with pytest.raises(ModelError, match="pickled adapters are not loaded"):
        load_adapter(open_base(tiny_llama).model, tmp_path / "a")
    with pytest.raises(ModelError, match=r"no adapter_config\.json"):
        load_adapter(open_base(tiny_llama).model, tmp_path)


def test_names_that_the_model_lacks(tiny_model: Callable[..., Path]):
    model = open_base(tiny_model("llama", tie_word_embeddings=True)).model
    with pytest.raises(ModelError, match=r'"q_poj".*did you mean "q_proj".*linear layers are: down_proj, gate_proj'):
        lora_config(model, targets=["q_poj"])
    with pytest.raises(ModelError, match=r'lora\.modules_to_save has "lm_haed".*did you mean "lm_head"'):
        lora_config(model, modules_to_save=["lm_haed"])
    with pytest.raises(ModelError, match="choose one"):
        lora_config(model, init="pissa", dora=True)
    gpt2 = open_base(tiny_model("gpt2")).model
    with pytest.raises(ModelError, match="wte and lm_head are one weight"):
        lora_config(gpt2, modules_to_save=["lm_head"])


def test_layers_are_found_by_class(tiny_model: Callable[..., Path]):
    names = {family: open_base(tiny_model(family)).model for family in ("gpt2", "gemma2", "qwen3")}
    assert linear_names(names["gpt2"]) == {"c_attn", "c_proj", "c_fc"}
    assert norm_names(names["gpt2"]) == ["ln_1", "ln_2", "ln_f"]
    assert norm_names(names["qwen3"]) == ["input_layernorm", "k_norm", "norm", "post_attention_layernorm", "q_norm"]
    assert "pre_feedforward_layernorm" in norm_names(names["gemma2"])


@pytest.mark.parametrize("option", ["plain", "norms", "bias all", "dora"])
def test_attach_on_meta_has_the_same_parameters(tiny_llama: Path, option: str):
    """For the memory plan: no memory, the same names, shapes, types and trained part."""
    real = open_base(tiny_llama, torch.bfloat16)
    meta = build_on_meta(real.model.config, torch.bfloat16)
    kinds = []
    for model in (real.model, meta):
        adapted = attach(model, lora_config(model, rank=4, **OPTIONS[option]))
        kinds.append({name: (w.shape, w.dtype, w.requires_grad) for name, w in adapted.named_parameters()})
    assert kinds[0] == kinds[1]
    assert not meta._forward_pre_hooks
