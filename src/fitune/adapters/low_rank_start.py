"""A and B that begin with singular directions: which ones count, and LoftQ (arXiv 2310.08659), which begins with what the
quantization of the base took away.

In: a PEFT model over a quantized base, and the weights that the base had before. Out: new A and B in place, and the
error of the base before and after.
Knows nothing of files.

One step of the paper's alternation (its algorithm 1 with T = 1, which is PEFT's default): Q = quantized W as any other
quantized base has it, and s·B·A = the best rank-r part of W − Q. More steps would move Q, and the adapter would then
open over a base of its own only. Two differences from PEFT 0.21: PEFT's `loftq_init` leaves the scale s = alpha/r out,
so that with alpha = 2r the correction is applied twice over, and it runs on a GPU alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from fitune.errors import ModelError
from fitune.models.quantization.quantize import dense_weight, is_quantized


@dataclass(frozen=True)
class LoftQ:
    """Error of the adapted layers: ‖W − Q‖ and ‖W − Q − s·B·A‖ as shares of ‖W‖ (Frobenius), and how many they are."""

    before: float
    after: float
    layers: int

    def __str__(self) -> str:
        return (
            f"LoftQ: the quantized weights of {self.layers} layers are off by {self.before:.2%} of their norm, "
            f"with the adapter that begins here by {self.after:.2%}"
        )


@torch.no_grad()
def start_loftq(model: PeftModel, dense: dict[str, Tensor], name: str = "default") -> LoftQ:
    """Set A and B of every quantized layer to the best approximation of its error.

    Where a layer's error has fewer directions than the rank, the rest of A and B begins as without LoftQ.

    Args:
        dense: layer's name in the bare model → its weight before quantization, (out, in).

    Raises:
        ModelError: no adapted layer is quantized.
    """
    squares = torch.zeros(3, dtype=torch.float64)
    layers = 0
    for path, module in model.get_base_model().named_modules():
        layer: Any = module
        if name not in getattr(layer, "lora_A", {}) or not is_quantized(layer.get_base_layer()):
            continue
        rough = dense_weight(layer.get_base_layer()).float()
        weight = dense[path].to(rough.device).float()
        scale = layer.scaling[name]
        b, a = low_rank(weight - rough, layer.r[name], scale)
        begin(layer, name, b, a)
        if magnitude := getattr(layer, "lora_magnitude_vector", {}):
            # DoRA's magnitude is the norm of what the layer begins with, which was W alone when PEFT made it.
            held = magnitude[name].weight
            held.copy_((rough + scale * b @ a).norm(dim=1).reshape(held.shape))
        left = weight - rough - scale * b @ a
        squares += torch.tensor([value.double().pow(2).sum().item() for value in (weight, weight - rough, left)])
        layers += 1
    if not layers:
        raise ModelError("lora.init is loftq, and none of the adapted layers is quantized; use lora.init default")
    model.fitune_init = "loftq"  # type: ignore[assignment]
    whole, before, after = squares.sqrt().tolist()
    return LoftQ(before / whole, after / whole, layers)


def low_rank(matrix: Tensor, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """B (out, k) and A (k, in) with scale·B·A the best approximation of an (out, in) matrix (Eckart and Young).

    k is the rank, or less where fewer singular values lie above rounding.

    The singular vectors come from the eigenvectors of the smaller Gram matrix: five times as fast as a whole SVD, and
    exact enough for the largest ones (their squares lie far above fp32's rounding). σ is the length of vᵀ·matrix. The
    root of v's eigenvalue would not do: the Gram matrix is rounded to eps·σ_max², so that below √eps·σ_max, 1/3000 in
    fp32, an eigenvalue can be anything near zero, a negative number too. σ is shared between B and A as PEFT does.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    vectors = torch.linalg.eigh(wide @ wide.T).eigenvectors[:, -rank:].flip(1)
    rows = vectors.T @ wide
    sigma = rows.norm(dim=1)
    kept = above_rounding(sigma, (matrix.shape[0], matrix.shape[1]))
    root = (sigma[kept] * scale).sqrt()  # sqrt(σ·s)
    left, right = vectors[:, kept] * root / scale, rows[kept] / root[:, None]
    return (right.T, left.T) if tall else (left, right)


def above_rounding(sigma_R: Tensor, shape: tuple[int, int]) -> Tensor:
    """Which of R singular values, the largest among them, are more than rounding: a mask.

    The rule of `numpy.linalg.matrix_rank`: σ > σ_max · max(out, in) · eps, with the eps of σ's type. A smaller σ can be
    the error of a zero, and its singular vectors are then of no meaning. A matrix of zeros has none above it.
    """
    return sigma_R > sigma_R.max() * max(shape) * torch.finfo(sigma_R.dtype).eps


@torch.no_grad()
def begin(layer: LoraLayer, name: str, b: Tensor, a: Tensor) -> None:
    """Set a LoRA layer's B and A to k directions, (out, k) and (k, in); k may be less than the rank.

    What is left of the rank begins as PEFT's default does: rows of A random (Kaiming), columns of B zero. It adds
    nothing to the layer and can be learnt, since B's gradient is a product with A. With zeros in both, each one's
    gradient is a product with the other and stays zero.
    """
    lora_a, lora_b = (cast(nn.Parameter, part[name].weight) for part in (layer.lora_A, layer.lora_B))
    if missing := layer.r[name] - len(a):
        rest = nn.init.kaiming_uniform_(a.new_empty(missing, a.shape[1]), a=math.sqrt(5))
        a, b = torch.cat([a, rest]), nn.functional.pad(b, (0, missing))
    lora_a.data, lora_b.data = a.to(lora_a).contiguous(), b.to(lora_b).contiguous()
