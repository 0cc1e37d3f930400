"""Where a CUDA kernel takes other memory than the meta device shows: each correction with its source.

In: nothing. Out: a table for `Recorder`, and functions that stand in for torch's during a trace.
Imports only torch (2.5 to 2.15). Sizes of workspaces are read from aten's CUDA sources, named beside each.

B rows, H heads, S tokens, D head size, V vocabulary, N selected positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from fitune.planning.trace.recorder import Recorder

aten = torch.ops.aten


def table(
    labels: int, rows: tuple[int, ...], seq_len: int, all_ones_mask: bool, flash_package: bool = False
) -> dict[OpOverload[..., object], Callable[..., object]]:
    """Operators whose meta version differs.

    Args:
        labels: how many positions of a row a boolean mask over tokens picks (meta tensors hold no values).
        rows: of the training batch, and of others; any other mask is taken for the training batch's.
        seq_len: tokens of a row.
        all_ones_mask: the answer to "is this mask all ones?".
        flash_package: attention is the flash-attn package's, whose result lies in memory as BSHD whatever the query does.
    """

    def picked(mask: Tensor) -> int:
        over_tokens = mask.dim() == 2 and mask.shape[0] in rows and mask.shape[1] in (seq_len, seq_len - 1)
        return labels * (mask.shape[0] if over_tokens else rows[0])

    def index(
        recorder: Recorder, func: OpOverload[..., object], tensor: Tensor, indices: Sequence[Tensor | None]
    ) -> object:
        return func(tensor, _without_bool(recorder, indices, picked))

    def index_put(
        recorder: Recorder,
        func: OpOverload[..., object],
        tensor: Tensor,
        indices: Sequence[Tensor | None],
        values: Tensor,
        accumulate: bool = False,
        *more: object,
    ) -> object:
        indices = _without_bool(recorder, indices, picked)
        if accumulate:
            # aten/native/cuda/Indexing.cu, index_put_with_sort_kernel: linear index, its sorted copy and the order,
            # int64 each.
            count = max((i.numel() for i in indices if i is not None), default=0)
            recorder.transient(8 * count, 8 * count, 8 * count)
        return func(tensor, indices, values, accumulate, *more)

    def nonzero(recorder: Recorder, func: OpOverload[..., object], tensor: Tensor) -> object:
        if tensor.device.type != "meta":
            return func(tensor)
        return torch.empty((picked(tensor), tensor.dim()), dtype=torch.int64, device="meta")

    def item(recorder: Recorder, func: OpOverload[..., object], tensor: Tensor) -> object:
        if tensor.device.type != "meta":
            return func(tensor)
        return bool(all_ones_mask) if tensor.dtype == torch.bool else 1

    def masked_select(recorder: Recorder, func: OpOverload[..., object], tensor: Tensor, mask: Tensor) -> object:
        if tensor.device.type != "meta":
            return func(tensor, mask)
        return tensor.new_empty((picked(mask),))

    return {
        aten.index.Tensor: index,
        aten.index_put.default: index_put,
        aten.index_put_.default: index_put,
        aten._index_put_impl_.default: index_put,
        aten.nonzero.default: nonzero,
        aten.masked_select.default: masked_select,
        aten._local_scalar_dense.default: item,
        aten.native_dropout.default: _native_dropout,
        aten.native_layer_norm.default: _native_layer_norm,
        aten.embedding_dense_backward.default: _embedding_backward,
        aten._softmax_backward_data.default: _softmax_backward,
        **_attention_backward(),
        **({aten._scaled_dot_product_flash_attention.default: _flash_package} if flash_package else {}),
        **_bitsandbytes(),
    }


def _without_bool(
    recorder: Recorder, indices: Sequence[Tensor | None], picked: Callable[[Tensor], int]
) -> list[Tensor | None]:
    """Boolean index tensors as the integer ones that CUDA makes of them (expandTensors in IndexingUtils.h)."""
    plain: list[Tensor | None] = []
    for value in indices:
        if value is not None and value.device.type == "meta" and value.dtype in (torch.bool, torch.uint8):
            found = torch.empty((picked(value), value.dim()), dtype=torch.int64, device="meta")
            recorder.see(found)
            plain += [found.select(1, column) for column in range(value.dim())]
        else:
            plain.append(value)
    return plain


def _native_dropout(
    recorder: Recorder, func: OpOverload[..., object], tensor: Tensor, p: float, train: bool | None
) -> tuple[Tensor, Tensor]:
    # aten/native/cuda/Dropout.cu keeps a bool mask; so does the meta kernel, here for torch versions that do not.
    out = torch.empty_like(tensor)
    return out, torch.empty_like(tensor, dtype=torch.bool)


def _native_layer_norm(
    recorder: Recorder, func: OpOverload[..., tuple[Tensor, Tensor, Tensor]], *args: object
) -> tuple[Tensor, Tensor, Tensor]:
    # aten/native/cuda/layer_norm_kernel.cu: mean and rstd in the accumulation type, fp32 for 16-bit inputs.
    out, mean, rstd = func(*args)
    if mean.dtype in (torch.float16, torch.bfloat16):
        mean, rstd = mean.float(), rstd.float()
    return out, mean, rstd


def _softmax_backward(recorder: Recorder, func: OpOverload[..., Tensor], grad: Tensor, *more: object) -> Tensor:
    # aten/native/cuda/SoftMax.cu, softmax_backward_cuda_out: `tmp = grad * output` beside the result.
    out = func(grad, *more)
    recorder.see(out)
    with recorder.labelled("attention"):
        recorder.transient(grad.numel() * grad.element_size())
    return out


def _embedding_backward(
    recorder: Recorder,
    func: OpOverload[..., object],
    grad: Tensor,
    indices: Tensor,
    rows: int,
    padding: int,
    *more: object,
) -> object:
    # aten/native/cuda/Embedding.cu and EmbeddingBackwardKernel.cu: with more than 3072 indices, or a padding index,
    # they are sorted (indices, order, sorted copies: int64 each) and partial sums are kept in fp32, one row for each
    # ten indices and one for each distinct index (at most one an index).
    count = indices.numel()
    if count > 3072 or padding >= 0:
        partial = min(count // 10 + count, count + 1) * grad.shape[-1] * 4
        recorder.transient(8 * count, 8 * count, 8 * count, partial)
    return func(grad, indices, rows, padding, *more)


# ---- attention


def _round_up(value: int, step: int) -> int:
    return -(-value // step) * step


def _attention_backward() -> dict[OpOverload[..., object], Callable[..., object]]:
    def flash(
        recorder: Recorder,
        func: OpOverload[..., object],
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        *more: object,
        **kwargs: object,
    ) -> object:
        # aten/native/transformers/cuda/flash_attn/flash_api.cpp, mha_bwd: softmax_d in fp32 over lengths rounded to
        # 128; dq accumulated in fp32 over head size rounded to 32 (64 above 128); dk and dv expanded to the query
        # heads when keys are shared.
        B, H, S, D = query.shape
        S_r, D_r = _round_up(S, 128), _round_up(D, 32 if D <= 128 else 64)
        sizes = [B * H * S_r * 4, B * S_r * H * D_r * 4]
        if key.shape[1] != H:
            sizes += [B * key.shape[2] * H * D * query.element_size()] * 2
        with recorder.labelled("attention"):
            recorder.transient(*sizes)
        return func(grad, query, key, *more, **kwargs)

    def efficient(
        recorder: Recorder,
        func: OpOverload[..., object],
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        *more: object,
        **kwargs: object,
    ) -> object:
        # aten/native/transformers/cuda/attention_backward.cu: delta in fp32; cutlass' workspace accumulates the
        # gradients of query, key and value in fp32 when they are 16-bit (kernel_backward.h, workspace_elements).
        B, H, S, D = query.shape
        S_k = key.shape[2]
        sizes = [B * H * _round_up(S, 128) * 4]
        if query.element_size() == 2:
            sizes.append(B * H * (_round_up(S, 128) + 2 * _round_up(S_k, 128)) * _round_up(D, 32) * 4)
        with recorder.labelled("attention"):
            recorder.transient(*sizes)
        return func(grad, query, key, *more, **kwargs)

    return {
        aten._scaled_dot_product_flash_attention_backward.default: flash,
        aten._scaled_dot_product_efficient_attention_backward.default: efficient,
    }


def _flash_package(
    recorder: Recorder, func: OpOverload[..., object], query: Tensor, key: Tensor, *more: object, **kwargs: object
) -> tuple[Tensor | int | None, ...]:
    B, H, S, D = query.shape
    out = torch.empty((B, S, H, D), dtype=query.dtype, device="meta").transpose(1, 2)
    lse = torch.empty((B, H, S), dtype=torch.float32, device="meta")
    state = torch.empty(2, dtype=torch.int64, device="meta")
    return (
        out,
        lse,
        None,
        None,
        S,
        key.shape[2],
        state,
        torch.empty((), device="meta"),
        torch.empty(0, device="meta"),
    )


def choose_attention(
    query: Tensor, key: Tensor, mask: Tensor | None, enable_gqa: bool, capability: tuple[int, int], value: Tensor
) -> str:
    """The kernel that CUDA takes: flash, efficient or math (aten/native/transformers/cuda/sdp_utils.cpp).

    flash: 16-bit, one head size up to 256, no mask, Ampere or later. efficient: any float, mask allowed, no shared keys.
    """
    half = query.dtype in (torch.float16, torch.bfloat16)
    size = query.shape[-1]
    same = key.shape[-1] == value.shape[-1] == size
    if half and mask is None and size <= 256 and capability >= (8, 0) and same:
        return "flash"
    if (not enable_gqa or query.shape[1] == key.shape[1]) and size % (8 if half else 4) == 0:
        if query.dtype == torch.bfloat16 and capability < (8, 0):
            return "math"
        return "efficient"
    return "math"


def attention_for(capability: tuple[int, int], forced: str | None = None) -> Callable[..., Tensor]:
    """A stand-in for F.scaled_dot_product_attention that runs the operator which CUDA would choose."""
    original = torch.nn.functional.scaled_dot_product_attention

    def scaled_dot_product_attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if attn_mask is not None and attn_mask.shape[-1] == 0:
            attn_mask = None  # a pack's (tree_attention.no_mask): on a card FlexAttention reads its layout instead
        kind = forced or choose_attention(query, key, attn_mask, enable_gqa, capability, value)
        if kind == "math":
            more = {"enable_gqa": True} if enable_gqa else {}
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        if kind == "flash":
            size = query.shape[-1]
            if size % 8:  # pad_last_dim in attention.cpp
                query, key, value = (torch.nn.functional.pad(t, (0, 8 - size % 8)) for t in (query, key, value))
            out = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, scale=scale)[0]
            return out[..., :size] if size % 8 else out
        if attn_mask is not None:
            if attn_mask.dtype == torch.bool:  # convert_boolean_attn_mask in attention.cpp
                low = torch.full((), float("-inf"), dtype=query.dtype, device=query.device)
                attn_mask = torch.where(attn_mask.logical_not(), low, torch.zeros_like(low))
            length = attn_mask.shape[-1]
            if length % 16:  # pad_bias in attention.cpp: rows aligned to 16 values
                attn_mask = torch.nn.functional.pad(attn_mask, (0, 16 - length % 16))[..., :length]
            attn_mask = attn_mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        return aten._scaled_dot_product_efficient_attention(
            query, key, value, attn_mask, needs_grad, dropout_p, is_causal, scale=scale
        )[0]

    return scaled_dot_product_attention


# ---- bitsandbytes (backends/cuda/ops.py of 0.49 and later, where operators are torch's)


def _bitsandbytes() -> dict[OpOverload[..., object], Callable[..., object]]:
    import_module("bitsandbytes")  # registers the operators

    ops = torch.ops.bitsandbytes
    found: dict[OpOverload[..., object], Callable[..., object]] = {}

    def add(name: str, kernel: Callable[..., object]) -> None:
        if hasattr(ops, name):
            found[getattr(ops, name).default] = kernel

    def dequantized(recorder: Recorder, func: OpOverload[..., Tensor], *args: object, **kwargs: object) -> Tensor:
        out = func(*args, **kwargs)
        with recorder.labelled(recorder.label or "dequantization buffers"):
            recorder.see(out)
        return out

    def gemm_4bit(
        recorder: Recorder,
        func: OpOverload[..., object],
        values: Tensor,
        weight: Tensor,
        shape: Sequence[int],
        *more: object,
        absmax_8bit: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        # From 1536 rows (512 for weights of 4 Mi values and more) bitsandbytes dequantizes and calls linear; below,
        # a kernel may read 4 bits directly, depending on the card: the larger of the two is taken.
        if absmax_8bit is not None:
            scales = absmax_8bit.numel() * 4
            with recorder.labelled("dequantization buffers"):
                recorder.transient(scales, shape[0] * shape[1] * values.element_size())
        else:
            with recorder.labelled("dequantization buffers"):
                recorder.transient(shape[0] * shape[1] * values.element_size())
        return torch.empty((*values.shape[:-1], shape[0]), dtype=values.dtype, device="meta")

    def vectorwise(
        recorder: Recorder, func: OpOverload[..., object], values: Tensor, threshold: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        rows = torch.empty(values.numel() // values.shape[-1], dtype=torch.float32, device="meta")
        out = torch.empty(values.shape, dtype=torch.int8, device="meta")
        outliers = None
        if threshold:
            # A.abs() and its comparison are alive together; no outlier columns are assumed (random weights).
            recorder.transient(values.numel() * 2, values.numel())
            outliers = torch.empty(0, dtype=torch.int64, device="meta")
        return out, rows, outliers

    def mixed(
        recorder: Recorder,
        func: OpOverload[..., object],
        A: Tensor,
        CA: Tensor,
        CB: Tensor,
        *more: object,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        out = scaled_mm(recorder, func, CA, CB, dtype=A.dtype)
        return out, torch.empty(0, dtype=A.dtype, device="meta")

    def scaled_mm(
        recorder: Recorder,
        func: OpOverload[..., object],
        CA: Tensor,
        CB: Tensor,
        *more: object,
        dtype: torch.dtype | None = None,
        **kwargs: object,
    ) -> Tensor:
        # int8_linear_matmul gives int32; int8_mm_dequant gives fp16, then casts to the wanted type.
        dtype = dtype or torch.float16
        count = CA.numel() // CA.shape[-1] * CB.shape[0]
        out = torch.empty((*CA.shape[:-1], CB.shape[0]), dtype=dtype, device="meta")
        recorder.transient(count * 4, *([count * 2] if dtype != torch.float16 else []))
        return out

    add("gemm_4bit", gemm_4bit)
    add("dequantize_4bit", dequantized)
    add("dequantize_blockwise", dequantized)
    add("int8_vectorwise_quant", vectorwise)
    add("int8_mixed_scaled_mm", mixed)
    add("int8_scaled_mm", scaled_mm)
    return found
