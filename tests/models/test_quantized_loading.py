"""Weights quantized while their files are read: what is stored is what `quantize_in_place` stores, and little else is held."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import make_family
from transformers import AutoConfig

from fitune.models.mixture.experts import expert_parameters, is_placeholder
from fitune.models.quantization import QUANTIZATIONS, four_bit, int8, quantized_loading
from fitune.models.quantization.quantization import Layer
from fitune.models.quantization.quantize import (
    QuantizationConfig,
    quantize_in_place,
    quantized_layers,
    scales,
    stored_bytes,
)
from fitune.models.quantization.quantized_loading import WhileReading, forget_quantizer, release_files
from fitune.models.quantization.unquantizable import unquantizable_layers
from fitune.models.towers import auto_class

WIDE = {"hidden_size": 64, "moe_intermediate_size": 64}


def both(folder: Path, kind: str) -> tuple[Any, Any]:
    """The model quantized when it is there, and while it is read."""
    config = AutoConfig.from_pretrained(folder)
    wanted = QuantizationConfig(kind, double_quant=kind != "int8")
    late = auto_class(config).from_pretrained(folder, dtype=torch.float32)
    quantize_in_place(late, wanted, torch.float32, "cpu")
    asked = WhileReading(wanted, torch.float32, "cpu")
    early = auto_class(config).from_pretrained(
        folder, dtype=torch.float32, quantization_config=asked, device_map={"": "cpu"}
    )
    forget_quantizer(early)
    release_files(early)
    return late, early


@pytest.mark.parametrize("kind", QUANTIZATIONS)
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "falcon", "gpt2"])
def test_the_same_bytes_as_when_the_whole_model_was_there(family: str, kind: str, tmp_path: Path) -> None:
    changed = WIDE if family == "qwen3_moe" else {"hidden_size": 64}
    late, early = both(make_family(tmp_path / family, family, **changed), kind)
    wanted, found = dict(late.named_parameters()), dict(early.named_parameters())
    assert wanted.keys() == found.keys() and sorted(quantized_layers(late)) == sorted(quantized_layers(early))
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name].data, value.data), name
    for name in quantized_layers(late):
        for one, other in zip(scales(late.get_submodule(name)), scales(early.get_submodule(name)), strict=True):
            assert torch.equal(one, other)
    assert stored_bytes(late) == stored_bytes(early)
    assert all(is_placeholder(stack) for stack in expert_parameters(early).values())
    assert vars(late).keys() == vars(early).keys() and vars(late.config).keys() == vars(early.config).keys()


def test_no_weight_is_left_in_the_mapped_file(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "llama", "llama", hidden_size=64)
    _, model = both(folder, "nf4")
    gc.collect()
    mapped = quantized_loading._mapped_files()
    assert not [name for name, value in model.named_parameters() if any(a <= value.data_ptr() < b for a, b in mapped)]


def test_one_stack_of_experts_is_in_16_bits_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import weakref

    folder = make_family(tmp_path / "moe", "qwen3_moe", **WIDE)
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0
    pack = quantized_loading.pack_stack

    def packing(module: Any, name: str, stack: torch.Tensor, *rest: Any) -> Any:
        nonlocal most
        gc.collect()
        alive.append(weakref.ref(stack))
        most = max(most, sum(ref() is not None for ref in alive))
        return pack(module, name, stack, *rest)

    monkeypatch.setattr(quantized_loading, "pack_stack", packing)
    both(folder, "int8")
    assert len(alive) == 4 and most == 1


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("kind", QUANTIZATIONS.values(), ids=QUANTIZATIONS)
def test_a_weight_packed_in_slices_is_the_same(kind: Any, double: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    weight = torch.randn(300, 128).to(torch.bfloat16)
    packed = []
    for size in (2**24, 64 * 100):
        monkeypatch.setattr(four_bit, "SLICE", size)
        monkeypatch.setattr(int8, "SLICE", size)
        with torch.device("meta"):
            layer: Any = kind.make_layer(
                Layer(inputs=128, outputs=300, bias=False, compute=torch.bfloat16, double_quant=double)
            )
        layer.weight = kind.pack(weight.clone(), layer, "cpu")
        state = kind.state(layer)
        packed.append([layer.weight.data, *kind.scales(state), kind.unpack(layer.weight.data, state)])
    assert len(packed[0]) == len(packed[1])
    assert all(torch.equal(one, other) for one, other in zip(*packed, strict=True))


@pytest.mark.parametrize(
    ("family", "left"),
    [
        (
            "mamba",
            {"x_proj", "dt_proj", "out_proj"},
        ),  # the kernel and the plain code multiply with the weights themselves
        ("jamba", {"dt_proj"}),
        ("llama4_text", {"router"}),
        ("gemma3n_text", {"prediction_coefs", "correction_coefs"}),
        ("llama", set()),
        ("bloom", set()),
    ],
)
def test_layers_that_are_more_than_a_product_stay_as_they_are(family: str, left: set[str], tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(make_family(tmp_path / family, family))
    with torch.device("meta"):
        model = auto_class(config).from_config(config)
    assert {name.split(".")[-1] for name in unquantizable_layers(model)} == left


def test_int8_takes_inputs_of_four_dimensions() -> None:
    kind = QUANTIZATIONS["int8"]
    with torch.device("meta"):
        layer: Any = kind.make_layer(Layer(inputs=32, outputs=8, bias=False, compute=torch.bfloat16))
    torch.manual_seed(0)
    layer.weight = kind.pack(torch.randn(8, 32), layer, "cpu")
    layer.eval()
    x = torch.randn(2, 1, 5, 32).to(torch.bfloat16)
    assert torch.equal(layer(x), layer(x.reshape(-1, 32)).reshape(2, 1, 5, 8))
