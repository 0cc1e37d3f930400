"""Results of the commonest operators on meta, made directly: torch works many of them out in Python, at 0.1 to 0.6 ms.

In: nothing. Out: a table for `Recorder`. Where an operator's inputs are not of the plain kind named here, torch answers.
Imports only torch (2.5 to 2.15).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch._ops import OpOverload

    from fitune.planning.trace.recorder import Recorder

aten = torch.ops.aten
# One tensor, perhaps numbers: the result is like the tensor.
LIKE_THE_FIRST = (
    aten.neg.default, aten.mul.Scalar, aten.div.Scalar, aten.pow.Tensor_Scalar, aten.rsqrt.default, aten.silu.default,
    aten.gelu.default, aten.relu.default, aten.tanh.default, aten.sigmoid.default, aten.exp.default,
)  # fmt: skip
PAIRS = (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor)


def quick_table() -> dict[OpOverload[..., object], Callable[..., object]]:
    """Operator → function(recorder, operator, its arguments)."""
    return {
        **dict.fromkeys(LIKE_THE_FIRST, _like_the_first),
        **dict.fromkeys(PAIRS, _pair),
        aten.addmm_.default: _in_place,
        aten.linalg_vector_norm.default: _whole_norm,
    }


def _plain(tensor: torch.Tensor) -> bool:
    """A floating point tensor on meta, without gaps."""
    return tensor.device.type == "meta" and tensor.dtype.is_floating_point and tensor.is_contiguous()


def _like_the_first(
    recorder: Recorder, func: OpOverload[..., object], tensor: torch.Tensor, *more: object, **kwargs: object
) -> object:
    if _plain(tensor) and not any(isinstance(value, torch.Tensor) for value in more):
        return torch.empty_like(tensor)
    return func(tensor, *more, **kwargs)


def _pair(
    recorder: Recorder, func: OpOverload[..., object], left: object, right: object, *more: object, **kwargs: object
) -> object:
    if isinstance(left, torch.Tensor) and _plain(left):
        if isinstance(right, int | float):
            return torch.empty_like(left)
        if isinstance(right, torch.Tensor) and right.dtype == left.dtype and right.device == left.device:
            if _spreads_over(right, left):
                return torch.empty_like(left)
            if _plain(right) and _spreads_over(left, right):
                return torch.empty_like(right)
    return func(left, right, *more, **kwargs)


def _spreads_over(small: torch.Tensor, large: torch.Tensor) -> bool:
    """Whether ``small`` broadcasts to the shape of ``large``, whose strides the result then has."""
    if small.shape == large.shape:
        return small.is_contiguous()
    pairs = zip(reversed(small.shape), reversed(large.shape), strict=False)
    return 0 < small.dim() <= large.dim() and all(one in (1, other) for one, other in pairs)


def _in_place(
    recorder: Recorder, func: OpOverload[..., object], tensor: torch.Tensor, *more: object, **kwargs: object
) -> torch.Tensor:
    return tensor


def _whole_norm(
    recorder: Recorder, func: OpOverload[..., object], tensor: torch.Tensor, *more: object, **kwargs: object
) -> object:
    if len(more) < 2 and not kwargs and _plain(tensor):
        return tensor.new_empty(())
    return func(tensor, *more, **kwargs)
