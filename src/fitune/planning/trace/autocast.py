"""CUDA's autocast for meta tensors: torch's own is off where no CUDA is.

In: functions called under `MetaAutocast`. Out: the same casts, seen by autograd, with autocast's weight cache.
Imports only torch (2.5 to 2.15). Lists of operators: aten/src/ATen/autocast_mode.h, AT_FORALL_LOWER_PRECISION_FP,
AT_FORALL_FP32 and AT_FORALL_FP32_SET_OPT_DTYPE.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TypeVar, cast

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Tensor = torch.Tensor
T = TypeVar("T")
LOWER: set[Callable[..., object]] = {
    F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__, torch.mm, Tensor.mm, torch.bmm,
    Tensor.bmm, torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm, torch.addbmm, torch.einsum, torch.mv,
    F.conv1d, torch.conv1d, F.conv2d, F.prelu,
}  # fmt: skip
FULL: set[Callable[..., object]] = {
    F.layer_norm, F.group_norm, torch.pow, Tensor.pow, Tensor.__pow__, torch.rsqrt, Tensor.rsqrt, torch.exp, Tensor.exp,
    torch.log, Tensor.log, torch.reciprocal, Tensor.reciprocal, F.softplus, torch.norm, Tensor.norm, F.nll_loss,
    torch.cumsum, Tensor.cumsum, torch.prod, Tensor.prod, torch.sum, Tensor.sum, F.cross_entropy, F.mse_loss,
    F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax,
}  # fmt: skip

# autocast_mode.cpp, KERNEL_CPU(…, fp32): of what language models call, the losses alone.
FULL_ON_CPU: set[Callable[..., object]] = {F.cross_entropy, F.nll_loss, F.mse_loss, torch.prod, Tensor.prod}


class MetaAutocast(TorchFunctionMode):
    """Cast as torch.autocast would, inside `enabled`, and where checkpointing recomputes.

    Args:
        dtype: the lower precision.
        full: functions that are computed in fp32; CUDA's by default.
    """

    def __init__(self, dtype: torch.dtype, full: set[Callable[..., object]] = FULL):
        super().__init__()
        self.dtype = dtype
        self.full = full
        self.forward_depth = 0
        self.recompute_depth = 0
        self.suspensions = 0
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def enabled(self) -> Generator[None]:
        """The forward pass: weights' casts are kept until it ends."""
        self.forward_depth += 1
        try:
            yield
        finally:
            self.forward_depth -= 1
            self.cache.clear()

    @contextmanager
    def recomputing(self) -> Generator[None]:
        """A layer is recomputed: function modes are off in the backward pass, so this one is entered again."""
        self.recompute_depth += 1
        try:
            with self:
                yield
        finally:
            self.recompute_depth -= 1

    @contextmanager
    def suspended(self) -> Generator[None]:
        """torch.autocast(enabled=False)."""
        self.suspensions += 1
        try:
            yield
        finally:
            self.suspensions -= 1

    @property
    def active(self) -> bool:
        """In the forward pass, or where it is recomputed: autocast is off in the backward pass itself."""
        return self.forward_depth + self.recompute_depth > 0 and not self.suspensions

    def lower(self, value: T) -> T:
        """cached_cast to the lower precision."""
        if isinstance(value, tuple | list):
            items = cast("tuple[object, ...] | list[object]", value)
            return cast(T, type(items)(self.lower(item) for item in items))
        return cast(T, self._lower_tensor(value)) if isinstance(value, Tensor) else value

    def _lower_tensor(self, value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        if value.dtype in (self.dtype, torch.float64):
            return value
        keep = (
            value.requires_grad and value.is_leaf and value.dtype == torch.float32 and self.forward_depth > 0
        )  # fmt: skip
        if not keep:
            return value.to(self.dtype)
        if id(value) not in self.cache:
            self.cache[id(value)] = (value, value.to(self.dtype))
        return self.cache[id(value)][1]

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in LOWER and self.active:
            args = tuple(self.lower(value) for value in args)
            kwargs = {name: self.lower(value) for name, value in kwargs.items()}
        elif func in self.full and self.active and not kwargs.get("dtype"):
            args = tuple(_full(value) for value in args)
            kwargs = {name: _full(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _full(value: object) -> object:
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
