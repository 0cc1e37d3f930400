"""LoftQ (arXiv 2310.08659): A and B that begin with what the quantization of the base took away.

In: a PEFT model over a quantized base, and the weights that the base had before. Out: new A and B in place, and the
error of the base before and after.
Knows nothing of files.

One step of the paper's alternation (its algorithm 1 with T = 1, which is PEFT's default): Q = quantized W as any other
quantized base has it, and s·B·A = the best rank-r part of W − Q. More steps would move Q, and the adapter would then
open over a base of its own only. Two differences from PEFT 0.21: PEFT's `loftq_init` leaves the scale s = alpha/r out,
so that with alpha = 2r the correction is applied twice over, and it runs on a GPU alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

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
        lora_a, lora_b = layer.lora_A[name].weight, layer.lora_B[name].weight
        # Directions that the error does not have keep PEFT's start, A drawn and B zero: two zeros would never train.
        lora_a[: len(a)].copy_(a)
        lora_b.zero_()[:, : len(a)].copy_(b)
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
    """B (out, k) and A (k, in) with scale·B·A the best approximation of an (out, in) matrix (Eckart and Young), k ≤ rank.

    The singular vectors come from the eigenvectors of the smaller Gram matrix: five times as fast as a whole SVD, and
    exact enough for the largest ones (their squares lie far above fp32's rounding). σ is shared between B and A as PEFT
    does. Directions whose σ² lies below the Gram matrix's rounding are left out: their eigenvalues are noise around
    zero, of either sign, and a division by their roots would be one by nothing.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = matrix.T if tall else matrix
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    values, vectors = values[-rank:].flip(0), vectors[:, -rank:].flip(1)
    rounding = (
        values[0] * torch.finfo(values.dtype).eps * max(matrix.shape)
    )  # as numpy.linalg.matrix_rank's, of squares
    told_apart = int((values > rounding.clamp(min=0)).sum())
    values, vectors = values[:told_apart], vectors[:, :told_apart]
    root = (values.sqrt() * scale).sqrt()  # sqrt(σ·s)
    left = vectors * root / scale
    right = (vectors.T @ wide) / root[:, None]
    return (right.T, left.T) if tall else (left, right)
