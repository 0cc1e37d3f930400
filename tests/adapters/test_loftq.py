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
from fitune.adapters.low_rank_start import low_rank, start_loftq
from fitune.config.settings_loader import load_settings
from fitune.errors import ModelError, SettingsError
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.quantization.quantize import NO_QUANTIZATION, QuantizationConfig, dense_weight
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer

NF4 = QuantizationConfig("nf4", double_quant=True)
IDS = torch.randint(5, 300, (2, 9), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", hidden_size=64, intermediate_size=128, tie_word_embeddings=True)


def open_base(folder: Path, quantization: QuantizationConfig = NF4, keep_dense: bool = False) -> LoadedBase:
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    rest = resolve_template(tokenizer), detect("cpu"), Precision(torch.bfloat16, "test")
    return load_base(source, tokenizer, *rest, quantization=quantization, keep_dense=keep_dense)


def begin(folder: Path, quantization: QuantizationConfig = NF4, **options: Any) -> tuple[LoadedBase, Any, Any]:
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
    k = min(rank, *shape)
    assert b.shape == (shape[0], k) and a.shape == (k, shape[1])
    torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1), atol=1e-4, rtol=0)


def with_singular_values(sigma: list[float], out: int, inner: int, seed: int = 0) -> torch.Tensor:
    """A matrix in fp32, (out, inner), with these singular values and zeros, and random singular vectors."""
    generator = torch.Generator().manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(size, len(sigma), generator=generator).double())[0] for size in (out, inner))
    return (u * torch.tensor(sigma, dtype=torch.float64) @ v.T).float()


@pytest.mark.parametrize("shape", [(64, 64), (48, 128), (128, 48)])
@pytest.mark.parametrize("rank", [16, 48])
def test_directions_below_rounding_are_left_out(shape: tuple[int, int], rank: int):
    """A matrix of rank 3: of the other eigenvalues some are zero, some rounding above it, some below."""
    matrix = with_singular_values([1.0, 0.5, 0.1], *shape)
    b, a = low_rank(matrix, rank, scale=2.0)
    assert b.shape == (shape[0], 3) and a.shape == (3, shape[1])
    torch.testing.assert_close(2 * b @ a, matrix, atol=1e-6, rtol=0)
    expected = torch.tensor([1.0, 0.5, 0.1]).div(2).sqrt()
    torch.testing.assert_close(b.norm(dim=0), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(a.norm(dim=1), expected, atol=1e-4, rtol=0)


def test_a_matrix_of_zeros_has_no_direction():
    b, a = low_rank(torch.zeros(8, 24), 4, scale=2.0)
    assert b.shape == (8, 0) and a.shape == (0, 24)


def test_small_directions_whose_eigenvalues_come_out_negative():
    """σ of 3e-5 is more than fp32's rounding of the matrix, and its square less than that of the Gram matrix."""
    sigma, negative = [1.0] * 24 + [3e-5] * 8, 0
    for seed in range(10):
        matrix = with_singular_values(sigma, 32, 32, seed)
        negative += int((torch.linalg.eigvalsh(matrix @ matrix.T) <= 0).sum())
        b, a = low_rank(matrix, 32, scale=2.0)
        assert b.shape == a.shape == (32, 32)
        torch.testing.assert_close(2 * b @ a, matrix, atol=1e-6, rtol=0)
        torch.testing.assert_close(b.norm(dim=0), torch.tensor(sigma).div(2).sqrt(), atol=1e-3, rtol=0)
        torch.testing.assert_close(b.norm(dim=0), a.norm(dim=1), atol=1e-6, rtol=0)
    assert negative  # or this tests nothing


def test_layers_with_little_or_no_error_can_learn_with_the_whole_rank(folder: Path):
    """One layer's weight is what its quantized form holds, another's is off in two directions; all else as it is."""
    base = open_base(folder, keep_dense=True)
    model = attach(base.model, lora_config(base.model, rank=8, alpha=16))
    exact, near = "model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"
    for path in (exact, near):
        base.dense[path] = dense_weight(base.model.get_submodule(path).get_base_layer()).float()
    base.dense[near] += with_singular_values([0.1, 0.01], *base.dense[near].shape)
    start_loftq(model, base.dense)
    layers: dict[str, Any] = {path: base.model.get_submodule(path) for path in (exact, near)}
    for path, k in {exact: 0, near: 2}.items():
        a, b = layers[path].lora_A["default"].weight, layers[path].lora_B["default"].weight
        assert a.shape == (8, 128) and b.shape == (64, 8)
        assert (a.norm(dim=1) > 0.01).all() and (b.norm(dim=0) > 0.01).tolist() == [True] * k + [False] * (8 - k)
        assert not b[:, k:].any()
    found = layers[near].get_delta_weight("default").float()
    torch.testing.assert_close(found, with_singular_values([0.1, 0.01], 64, 128), atol=1e-4, rtol=0)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    for _ in range(2):  # A's gradient is a product with B, which has moved in the second step
        optimizer.zero_grad()
        model.train()(IDS, labels=IDS).loss.backward()
        optimizer.step()
    for layer in layers.values():
        assert (layer.lora_A["default"].weight.grad.abs().amax(dim=1) > 0).all()
        assert (layer.lora_B["default"].weight.grad.abs().amax(dim=0) > 0).all()


@pytest.mark.parametrize("kind", ["nf4", "fp4", "int8"])
def test_the_error_falls_in_weights_and_logits(folder: Path, kind: str):
    exact = logits(open_base(folder, NO_QUANTIZATION).model)
    off = (logits(open_base(folder, QuantizationConfig(kind)).model) - exact).norm()
    _, model, report = begin(folder, QuantizationConfig(kind))
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
    for other in (NO_QUANTIZATION, QuantizationConfig("nf4"), QuantizationConfig("int8")):
        with pytest.raises(ModelError, match="initialised with LoftQ over nf4 with double quantization"):
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
