"""bitsandbytes' int8 products as a CPU computes them, which meta tensors do not show.

In: nothing. Out: a table for `Recorder`, and a stand-in for `bitsandbytes.matmul` during a trace. Read from
bitsandbytes/backends/default/ops.py and autograd/_functions.py (0.49 and 0.50).

M rows, K inputs, N outputs. Random weights are taken to have no outlier columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def int8_kernels() -> dict[Any, Callable[..., Any]]:
    """Operators of a forward pass without gradients, and of loading: bitsandbytes' own code in torch, unseen on meta."""
    import bitsandbytes  # noqa: F401 # pyright: ignore[reportUnusedImport] - registers the operators

    ops = torch.ops.bitsandbytes
    return {
        ops.int8_vectorwise_quant.default: _quantized,
        ops.int8_mixed_scaled_mm.default: _mixed,
        ops.int8_scaled_mm.default: _scaled,
    }


def training_matmul(usual: Callable[..., Any]) -> Callable[..., Any]:
    """`bitsandbytes.matmul`: while it trains, a CPU unpacks the weight and multiplies in the type of the input."""
    from bitsandbytes.autograd._functions import MatMul8bitFp

    def matmul(A: Any, B: Any, out: Any = None, state: Any = None, threshold: float = 0.0, bias: Any = None) -> Any:
        if state is not None and state.is_training:
            return MatMul8bitFp.apply(A, B, out, bias, state)
        return usual(A, B, out, state, threshold, bias)

    return matmul


def _quantized(recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    values = args[0]
    rows = torch.empty(values.numel() // values.shape[-1], dtype=torch.float32, device="meta")
    out = torch.empty(values.shape, dtype=torch.int8, device="meta")
    # A·(127/rows) and its rounding, both in fp32, are alive together; |A| and the comparison before them are less.
    recorder.transient(4 * values.numel(), 4 * values.numel())
    threshold = args[1] if len(args) > 1 else kwargs.get("threshold", 0.0)
    return out, rows, torch.empty(0, dtype=torch.int64, device="meta") if threshold else None


def _mixed(recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    A, CA, CB, SCA, SCB = args[:5]
    out = _scaled(recorder, None, (CA, CB, SCA, SCB), {"dtype": A.dtype})
    return out, torch.empty(0, dtype=A.dtype, device="meta")


def _scaled(recorder: Any, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    CA, CB = args[:2]
    count = CA.numel() // CA.shape[-1] * CB.shape[0]
    # int8_linear_matmul without AVX-512: both factors and the product in fp32, then int32. With it only the last.
    recorder.transient(4 * CA.numel(), 4 * CB.numel(), 4 * count, 4 * count)
    # int8_mm_dequant: the int32 product, row times column scales, and two products of these, all in fp32.
    recorder.transient(4 * count, 4 * count, 4 * count, 4 * count)
    return torch.empty((*CA.shape[:-1], CB.shape[0]), dtype=kwargs.get("dtype") or torch.float16, device="meta")
