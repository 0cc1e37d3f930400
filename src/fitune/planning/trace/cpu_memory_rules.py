"""bitsandbytes' packing and int8 products as a CPU computes them, which meta tensors do not show.

In: nothing. Out: a table for `Recorder`, and a stand-in for `bitsandbytes.matmul` during a trace. Read from
bitsandbytes/backends/default/ops.py and autograd/_functions.py (0.49 and 0.50).

M rows, K inputs, N outputs. Random weights are taken to have no outlier columns.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fitune.models.quantization.four_bit import SLICE

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from fitune.planning.trace.recorder import Recorder


def quantized_kernels() -> dict[OpOverload[..., object], Callable[..., object]]:
    """Operators of a forward pass without gradients, and of loading: bitsandbytes' own code in torch, unseen on meta."""
    import_module("bitsandbytes")  # registers the operators

    ops = torch.ops.bitsandbytes
    return {
        ops.int8_vectorwise_quant.default: _quantized,
        ops.int8_mixed_scaled_mm.default: _mixed,
        ops.int8_scaled_mm.default: _scaled,
        ops.quantize_4bit.default: _packed,
    }


def training_matmul(usual: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`bitsandbytes.matmul`: while it trains, a CPU unpacks the weight and multiplies in the type of the input."""
    from bitsandbytes.autograd._functions import MatMul8bitFp

    def matmul(
        A: Tensor,
        B: Tensor,
        out: Tensor | None = None,
        state: object = None,
        threshold: float = 0.0,
        bias: Tensor | None = None,
    ) -> Tensor:
        kept: Any = state
        if kept is not None and kept.is_training:
            return MatMul8bitFp.apply(A, B, out, bias, state)
        return usual(A, B, out, state, threshold, bias)

    return matmul


def _quantized(
    recorder: Recorder, func: OpOverload[..., object], values: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor, Tensor | None]:
    rows = torch.empty(values.numel() // values.shape[-1], dtype=torch.float32, device="meta")
    out = torch.empty(values.shape, dtype=torch.int8, device="meta")
    # A·(127/rows) and its rounding, both in fp32, are alive together; |A| and the comparison before them are less.
    recorder.transient(4 * values.numel(), 4 * values.numel())
    return out, rows, torch.empty(0, dtype=torch.int64, device="meta") if threshold else None


def _packed(
    recorder: Recorder, func: OpOverload[..., object], A: Tensor, blocksize: int, quant_type: str, storage: torch.dtype
) -> tuple[Tensor, Tensor]:
    count = A.numel()
    packed = torch.empty((count // 2, 1), dtype=torch.uint8, device="meta")
    scales = torch.empty(-(-count // blocksize), dtype=torch.float32, device="meta")
    # fp32 values, scaled and clamped ones, their places in int32, and bytes, of a slice.
    part = min(count, SLICE)
    recorder.transient(4 * part, 4 * part, 4 * part, part)
    return packed, scales


def _mixed(
    recorder: Recorder,
    func: OpOverload[..., object],
    A: Tensor,
    CA: Tensor,
    CB: Tensor,
    *more: object,
    **kwargs: object,
) -> tuple[Tensor, Tensor]:
    out = _scaled(recorder, func, CA, CB, dtype=A.dtype)
    return out, torch.empty(0, dtype=A.dtype, device="meta")


def _scaled(
    recorder: Recorder,
    func: OpOverload[..., object],
    CA: Tensor,
    CB: Tensor,
    *more: object,
    dtype: torch.dtype | None = None,
    **kwargs: object,
) -> Tensor:
    count = CA.numel() // CA.shape[-1] * CB.shape[0]
    # int8_linear_matmul without AVX-512: both factors and the product in fp32, then int32. With it only the last.
    recorder.transient(4 * CA.numel(), 4 * CB.numel(), 4 * count, 4 * count)
    # int8_mm_dequant: the int32 product, row times column scales, and two products of these, all in fp32.
    recorder.transient(4 * count, 4 * count, 4 * count, 4 * count)
    return torch.empty((*CA.shape[:-1], CB.shape[0]), dtype=dtype or torch.float16, device="meta")
