"""A and B that begin with singular directions (LoftQ, PiSSA): which directions count, and how the other rows begin."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def above_rounding(sigma_R: Tensor, shape: tuple[int, int]) -> Tensor:
    """Which of R singular values, the largest among them, are more than rounding: a mask.

    The rule of `numpy.linalg.matrix_rank`: σ > σ_max · max(out, in) · eps, with the eps of σ's type. A smaller σ can be
    the error of a zero, and its singular vectors are then of no meaning. A matrix of zeros has none above it.
    """
    return sigma_R > sigma_R.max() * max(shape) * torch.finfo(sigma_R.dtype).eps


@torch.no_grad()
def begin(layer: Any, name: str, b: Tensor, a: Tensor) -> None:
    """Set a LoRA layer's B and A to k directions, (out, k) and (k, in); k may be less than the rank.

    What is left of the rank begins as PEFT's default does: rows of A random (Kaiming), columns of B zero. It adds
    nothing to the layer and can be learnt, since B's gradient is a product with A. With zeros in both, each one's
    gradient is a product with the other and stays zero.
    """
    lora_a, lora_b = layer.lora_A[name].weight, layer.lora_B[name].weight
    if missing := layer.r[name] - len(a):
        rest = nn.init.kaiming_uniform_(a.new_empty(missing, a.shape[1]), a=math.sqrt(5))
        a, b = torch.cat([a, rest]), nn.functional.pad(b, (0, missing))
    lora_a.data, lora_b.data = a.to(lora_a).contiguous(), b.to(lora_b).contiguous()
