"""Lean norms and blocks: the class of transformers that each of them stands in for is the reference."""

from __future__ import annotations

import importlib
from collections import namedtuple

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from fitune.adapters.inject import attach, cast_trained_to_fp32, lora_config
from fitune.data.packing.bins import pack_rows
from fitune.models.quantization.quantize import QuantizationConfig, quantize_in_place
from fitune.ops.fused_layers import BLOCKS, LAYERS, NORMS, LeanBlock, LeanLayer, LeanNorm, use_lean_layers, use_tiles
from fitune.ops.fused_lora import FastLinear, FastLora, use_fast_lora
from fitune.ops.packed_loss import pack_loss, to_pack
from fitune.ops.tree_attention import use_tree_attention

Row = namedtuple("Row", ["input_ids", "trained", "row_number"])
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip


def own_class(name):
    family = name.removesuffix("RMSNorm").removesuffix("MLP").lower()
    return getattr(importlib.import_module(f"transformers.models.{family}.modeling_{family}"), name, None)


def run(module, x, autocast=False):
    x = x.clone().requires_grad_(True)
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = module(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    return y.detach(), {"x": x.grad} | {n: p.grad for n, p in module.named_parameters() if p.grad is not None}


def near(first, second, relative):
    assert first.keys() == second.keys()
    for name in first:
        assert (first[name] - second[name]).norm() <= relative * first[name].norm(), name


@pytest.mark.parametrize("name", NORMS)
def test_norms_equal_their_own_class(name):
    torch.manual_seed(0)
    norm = own_class(name)(32, eps=1e-5)
    nn.init.normal_(norm.weight, 1, 0.3)
    norm.weight.requires_grad_(False)
    x = torch.randn(2, 5, 32)
    rounded = own_class(name)(32, eps=1e-5).bfloat16().requires_grad_(False)
    rounded.load_state_dict(norm.state_dict())
    own, own16 = run(norm, x), run(rounded, x.bfloat16())
    assert use_lean_layers(rounded) == 1
    assert use_lean_layers(norm) == 1 and isinstance(norm, LeanNorm) and isinstance(norm, own_class(name))
    lean, lean16 = run(norm, x), run(rounded, x.bfloat16())
    assert torch.equal(own[0], lean[0]) and torch.equal(own16[0], lean16[0])
    near(own[1], lean[1], 1e-6)
    near(own16[1], lean16[1], 4e-3)


@pytest.mark.parametrize("name", [name for name in BLOCKS if own_class(name)])
@pytest.mark.parametrize("ranks", [{}, {"rank_pattern": {"up_proj": 2}}], ids=["equal ranks", "unequal ranks"])
def test_blocks_equal_their_own_class(name, ranks):
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            config = importlib.import_module("transformers").LlamaConfig(**SIZES, mlp_bias=False)
            self.mlp = own_class(name)(config)

        def forward(self, x):
            return self.mlp(x)

    torch.manual_seed(0)
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=False, **ranks)
    holder = Holder()
    config.target_modules = ["gate_proj", "up_proj", "down_proj"]
    assert use_fast_lora(config, holder)
    model = get_peft_model(holder, config)
    x = torch.randn(2, 5, 32)
    own = run(model, x)
    assert use_lean_layers(model) == 1 and isinstance(holder.mlp, LeanBlock)
    lean = run(model, x)
    assert len(lean[1]) == 7
    assert torch.allclose(own[0], lean[0], rtol=0, atol=1e-6)
    near(own[1], lean[1], 1e-5)


def adapted(**options):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    return attach(model, lora_config(model, rank=4, init="debug", **options)).train()


def loss_and_grads(model, autocast=False):
    torch.manual_seed(2)
    ids = torch.randint(0, 64, (3, 7))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def test_a_whole_model_keeps_its_loss_gradients_and_names():
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**SIZES))
    config = lora_config(base, rank=4, init="debug")
    plain, lean = get_peft_model(base, config).train(), adapted()
    lean.load_state_dict(plain.state_dict())
    kinds = [type(module) for module in lean.modules()]
    assert sum(issubclass(kind, LeanNorm) for kind in kinds) == 5
    assert sum(issubclass(kind, LeanBlock) for kind in kinds) == 2
    (loss, grads), (lean_loss, lean_grads) = loss_and_grads(plain), loss_and_grads(lean)
    assert torch.allclose(loss, lean_loss, rtol=0, atol=1e-6)
    near(grads, lean_grads, 1e-5)
    ids = torch.arange(9)[None]
    plain.eval(), lean.eval()
    assert torch.equal(plain(input_ids=ids).logits, lean(input_ids=ids).logits)


def family_model(name, **options):
    """A tiny causal LM whose decoder layers are of the class ``name``, with LoRA."""
    family = name.removesuffix("DecoderLayer")
    transformers = importlib.import_module("transformers")
    config = getattr(transformers, f"{family}Config")(**SIZES, **options)
    torch.manual_seed(0)
    base = getattr(transformers, f"{family}ForCausalLM")(config)
    for value in base.parameters():
        nn.init.normal_(value, 1.0 if value.ndim == 1 and len(value) == 32 else 0.0, 0.2)
    return base


# A window that hides keys; Qwen2 has one from some layer on.
WINDOWS = {
    "MistralDecoderLayer": {"sliding_window": 4},
    "Qwen2DecoderLayer": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
}


@pytest.mark.parametrize("window", [False, True], ids=["all keys", "window"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("layout", ["padded", "pack"])
def test_layers_equal_their_own_class(name, layout, window):
    options = WINDOWS.get(name, {}) if window else {}
    base = family_model(name, **options)
    config = lora_config(base, rank=4, alpha=6, init="debug")
    plain = get_peft_model(base, config).train()
    lean = attach(family_model(name, **options), config).train()
    lean.load_state_dict(plain.state_dict())
    assert sum(isinstance(module, LeanLayer) for module in lean.modules()) == 2
    beginning = tuple(range(9))
    rows = [
        Row((*beginning, *range(number, number + 4)), (False,) * 9 + (True,) * 4, number) for number in range(10, 14)
    ]

    def loss_of(model):
        if layout == "padded":
            ids = torch.randint(0, 64, (3, 7), generator=torch.Generator().manual_seed(2))
            mask = torch.ones_like(ids)
            mask[0, 5:] = mask[2, 3:] = 0
            return model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        use_tree_attention(model.get_base_model())
        return sum(pack_loss(model, to_pack(tree, "cpu"), 10) for tree in pack_rows(rows, 10**6))

    found = []
    for model in (plain, lean):
        loss = loss_of(model)
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
    assert torch.allclose(found[0][0], found[1][0], rtol=1e-6, atol=0)
    assert len(found[1][1]) == 2 * 2 * 7
    near(found[0][1], found[1][1], 1e-5)


def test_the_last_layer_computes_what_is_read():
    lean = adapted()
    use_tree_attention(lean.get_base_model())
    body = lean.get_base_model().model
    pack = to_pack(pack_rows([Row(tuple(range(9)), (False,) * 6 + (True,) * 3, 0)], 100)[0], "cpu")
    seen = []
    body.layers[-1].register_forward_hook(lambda module, arguments, output: seen.append(output.shape[1]))
    pack_loss(lean, pack, 1)
    lean.eval()
    pack_loss(lean, pack, 1)
    assert seen == [3, 8]


def test_trained_norms_and_dropout_are_left_to_the_class_above():
    model = adapted(train_norms=True, dropout=0.5)
    _, grads = loss_and_grads(model)
    assert any("norm" in name for name in grads)
    blocks = [module for module in model.modules() if isinstance(module, LeanBlock)]
    assert blocks and all(block.gate_proj.plain_parts(torch.ones(1, 32)) is None for block in blocks)


def test_a_merged_adapter_is_left_to_the_class_above():
    model = adapted()
    before, _ = loss_and_grads(model)
    model.merge_adapter()
    model.train()
    ids = torch.randint(0, 64, (3, 7), generator=torch.Generator().manual_seed(2))
    merged = model(input_ids=ids, labels=ids).loss
    assert torch.isfinite(merged) and any(isinstance(module, FastLinear) for module in model.modules())
    assert torch.isfinite(before)


# ---- over quantized bases


WIDE = {
    "vocab_size": 64, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
KINDS = [("nf4", False), ("nf4", True), ("fp4", False), ("int8", False)]


def quantized(kind, double, dtype, fused, biases=False, unquantized=(), **options):
    """A tiny model in few bits under LoRA: fitune's way, or PEFT's alone."""
    torch.manual_seed(0)
    family = importlib.import_module("transformers")
    name = "Qwen2" if biases else "Llama"
    base = getattr(family, f"{name}ForCausalLM")(getattr(family, f"{name}Config")(**WIDE)).to(dtype)
    quantize_in_place(base, QuantizationConfig(kind, double, tuple(unquantized)), dtype, "cpu")
    base.requires_grad_(False)
    config = lora_config(base, rank=4, alpha=6, init="debug", **options)
    torch.manual_seed(1)
    if fused:
        return attach(base, config).train()
    plain = get_peft_model(base, config)
    cast_trained_to_fp32(plain)
    return plain.train()


@pytest.mark.parametrize("biases", [False, True], ids=["no biases", "biases"])
@pytest.mark.parametrize(("kind", "double"), KINDS)
def test_quantized_layers_equal_pefts(kind, double, biases):
    plain, fused = (quantized(kind, double, torch.float32, fused, biases) for fused in (False, True))
    assert sum(isinstance(module, FastLora) for module in fused.modules()) == 14
    assert sum(isinstance(module, LeanLayer) for module in fused.modules()) == 2
    assert [name for name, _ in plain.named_parameters()] == [name for name, _ in fused.named_parameters()]
    (loss, grads), (fused_loss, fused_grads) = loss_and_grads(plain), loss_and_grads(fused)
    assert torch.allclose(loss, fused_loss, rtol=0, atol=1e-6)
    assert len(fused_grads) == 28
    near(grads, fused_grads, 1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_layers_in_bf16_are_as_near_to_fp32_as_pefts(kind, checkpointing):
    (_, exact), *others = (
        loss_and_grads(quantized(kind, False, dtype, fused), autocast=dtype == torch.bfloat16)
        for dtype, fused in ((torch.float32, False), (torch.bfloat16, False))
    )
    model = quantized(kind, False, torch.bfloat16, True)
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    others.append(loss_and_grads(model, autocast=True))
    (loss, plain), (fused_loss, fused) = others

    def far(grads):
        return sum(((grads[name] - grad).norm() / grad.norm()) ** 2 for name, grad in exact.items())

    assert fused.keys() == plain.keys() == exact.keys()
    assert fused_loss.item() == pytest.approx(loss.item(), rel=3e-3) and far(fused) <= 1.5 * far(plain)


def test_layers_left_unquantized_are_fused_beside_the_others():
    plain, fused = (
        quantized("nf4", False, torch.float32, fused, unquantized=("down_proj",)) for fused in (False, True)
    )  # fmt: skip
    assert sum(isinstance(module, FastLinear) for module in fused.modules()) == 2
    (loss, grads), (fused_loss, fused_grads) = loss_and_grads(plain), loss_and_grads(fused)
    assert torch.allclose(loss, fused_loss, rtol=0, atol=1e-6)
    near(grads, fused_grads, 1e-5)


def test_what_a_quantized_layer_keeps_is_what_a_dense_one_keeps():
    """Bytes that autograd keeps of a step in bf16, weights and adapters left out."""

    def kept_bytes(model):
        frozen = {parameter.data_ptr() for parameter in model.parameters()}
        kept = {}

        def pack(tensor):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        ids = torch.randint(0, 64, (4, 64), generator=torch.Generator().manual_seed(2))
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", torch.bfloat16),
        ):
            loss = model(input_ids=ids, labels=ids).loss
        assert loss.requires_grad
        return sum(size for place, size in kept.items() if place not in frozen)

    torch.manual_seed(0)
    dense = LlamaForCausalLM(LlamaConfig(**WIDE)).to(torch.bfloat16)
    dense = attach(dense, lora_config(dense, rank=4, init="debug")).train()
    assert kept_bytes(quantized("nf4", True, torch.bfloat16, True)) <= kept_bytes(dense)
    assert kept_bytes(quantized("nf4", True, torch.bfloat16, False)) > 1.5 * kept_bytes(dense)


# ---- in tiles


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("base", ["dense", "nf4", "qwen3"])
def test_tiles_change_nothing_but_the_order_of_sums(base, checkpointing):
    """Tiles of 8 for 21 tokens, so that the last is shorter; Qwen3's attention is its own class's."""

    def made():
        if base == "qwen3":
            model = family_model("Qwen3DecoderLayer", head_dim=8)
            return attach(model, lora_config(model, rank=4, init="debug")).train()
        return quantized("nf4", True, torch.float32, True) if base == "nf4" else adapted()

    whole, tiled = made(), made()  # of the same seeds
    assert use_tiles(tiled, 8) == (2 if base == "qwen3" else 4)
    for model in (whole, tiled) if checkpointing else ():
        model.activation_checkpointing_enable({"use_reentrant": False})
    (loss, grads), (tiled_loss, tiled_grads) = loss_and_grads(whole), loss_and_grads(tiled)
    assert torch.allclose(loss, tiled_loss, rtol=0, atol=1e-6)
    near(grads, tiled_grads, 1e-5)


def test_tiles_keep_nothing_of_the_inner_size():
    from fitune.planning.trace.recorder import Recorder

    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**{**SIZES, "intermediate_size": 4096}))
    model = attach(base, lora_config(base, rank=4, init="debug")).train()
    ids = torch.randint(0, 64, (1, 256))
    largest = {}
    for tile in (0, 32):
        use_tiles(model, tile)
        recorder = Recorder(device="cpu")
        recorder.begin("step 1")
        recorder.mark(model.parameters(), "weights")
        with recorder:
            model(input_ids=ids, labels=ids).loss.backward()
        made = zip(recorder.sizes, recorder.categories, strict=True)
        largest[tile] = max(size for size, category in made if category != "weights")
    assert largest == {0: 4 * 256 * 4096, 32: 4 * 32 * 4096}
