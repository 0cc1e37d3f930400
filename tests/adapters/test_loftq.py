"""LoftQ: the adapter begins with the error of the quantization, and opens over the same quantized base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from fitune.adapters.adapter_folder import base_facts, load_adapter, save_adapter
from fitune.adapters.inject import attach, lora_config
from fitune.adapters.loftq import low_rank, start_loftq
from fitune.config.settings_loader import load_settings
from fitune.errors import ModelError, SettingsError
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.quantization.quantize import NO_QUANTIZATION, Quantization, dense_weight
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer

NF4 = Quantization("nf4", double_quant=True)
IDS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", hidden_size=64, intermediate_size=128, tie_word_embeddings=True)


def open_base(folder: Path, quantization: Quantization = NF4, keep_dense: bool = False) -> LoadedBase:
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    rest = resolve_template(tokenizer), detect("cpu"), Precision(torch.bfloat16, "test")
    return load_base(source, tokenizer, *rest, quantization=quantization, keep_dense=keep_dense)


def begin(folder: Path, quantization: Quantization = NF4, **options: Any) -> tuple[LoadedBase, Any, Any]:
    base = open_base(folder, quantization, keep_dense=True)
    model = attach(base.model, lora_config(base.model, **{"rank": 16, "alpha": 32, **options}))
    return base, model, start_loftq(model, base.dense)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits.float()


@pytest.mark.parametrize(("shape", "rank"), [((64, 128), 16), ((128, 64), 16), ((16, 64), 32)])
def test_best_approximation_of_a_rank(shape: tuple[int, int], rank: int):
    """Against the singular value decomposition; B and A share each singular value evenly."""
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    b, a = low_rank(matrix, rank, scale=2.0)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    torch.testing.assert_close(2 * b @ a, u[:, :rank] * s[:rank] @ v[:rank], atol=1e-4, rtol=0)
    kept = min(rank, *shape)
    assert b.shape == (shape[0], kept) and a.shape == (kept, shape[1])
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 5])
@pytest.mark.parametrize("shape", [(64, 128), (128, 64)])
def test_directions_that_are_rounding_are_left_out(shape: tuple[int, int], rank: int):
    """Their eigenvalues are noise around zero: on some CPUs a division by one of their roots gave 1.5e32."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
    b, a = low_rank(matrix, 16, scale=2.0)
    assert b.shape[1] == a.shape[0] == rank
    torch.testing.assert_close(2 * b @ a, matrix, atol=1e-4, rtol=1e-3)


def test_directions_without_an_error_begin_as_lora_does_and_can_be_trained(folder: Path, monkeypatch: Any):
    base = open_base(folder, keep_dense=True)
    for name, weight in base.dense.items():  # an error of rank 2
        rough = dense_weight(base.model.get_submodule(name)).float()
        base.dense[name] = (
            rough + 0.1 * torch.ones_like(weight).float().cumsum(0) + torch.ones_like(weight).float().cumsum(1)
        )
    model = attach(base.model, lora_config(base.model, rank=8, alpha=16))
    start_loftq(model, base.dense)
    layer = model.get_base_model().model.layers[1].self_attn.o_proj
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert (b[:, :2].norm(dim=0) > 0).all() and (b[:, 2:] == 0).all()
    assert (a.norm(dim=1) > 0).all() and a.abs().max() < 100


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_the_error_falls_in_weights_and_logits(folder: Path, kind: str):
    exact = logits(open_base(folder, NO_QUANTIZATION).model)
    off = (logits(open_base(folder, Quantization(kind)).model) - exact).norm()
    _, model, report = begin(folder, Quantization(kind))
    assert 0 < report.after < 0.8 * report.before and report.layers == 14
    assert (logits(model) - exact).norm() < off


def test_a_full_rank_takes_all_of_the_error(folder: Path):
    _, _, report = begin(folder, rank=64, alpha=64)
    assert report.before > 0.05 and report.after < 1e-5


@pytest.mark.parametrize("options", [{}, {"rslora": True}, {"dora": True}])
def test_it_opens_over_the_base_that_any_run_quantizes(folder: Path, tmp_path: Path, options: dict[str, Any]):
    """Also in plain PEFT; and it is refused over the whole base, whose weights have no error to make up for."""
    base, model, _ = begin(folder, **options)
    after = logits(model)
    save_adapter(model, base.tokenizer, base.template, tmp_path / "a", base_facts(base))
    again = load_adapter(open_base(folder).model, tmp_path / "a")
    torch.testing.assert_close(logits(again), after, atol=0, rtol=0)
    plain = PeftModel.from_pretrained(open_base(folder).model, tmp_path / "a")
    torch.testing.assert_close(logits(plain), after, atol=0, rtol=0)
    assert json.loads((tmp_path / "a" / "fitune.json").read_text())["init"] == "loftq"
    for other in (NO_QUANTIZATION, Quantization("nf4"), Quantization("int8")):
        with pytest.raises(ModelError, match="begun with LoftQ over nf4 with double quantization"):
            load_adapter(open_base(folder, other).model, tmp_path / "a")


def test_dora_begins_at_the_approximation(folder: Path):
    """The magnitude must be that of Q + s·B·A: with a full rank the model is then the whole one."""
    exact = logits(open_base(folder, NO_QUANTIZATION).model)
    _, model, _ = begin(folder, rank=64, alpha=64, dora=True)
    torch.testing.assert_close(logits(model), exact, atol=0.02, rtol=0)  # bf16


def test_faults(folder: Path):
    with pytest.raises(SettingsError, match=r"is loftq, which begins with the error of a quantization, and .* none"):
        load_settings(None, {"lora.init": "loftq"})
    base = open_base(folder, NO_QUANTIZATION)
    with pytest.raises(ModelError, match="none of the adapted layers is quantized"):
        start_loftq(attach(base.model, lora_config(base.model)), {})
