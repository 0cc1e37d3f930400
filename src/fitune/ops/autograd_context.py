"""What `torch.autograd.Function` hands to forward and backward, as types: torch gives its own as ``Any``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd import function

Backward = TypeVar("Backward", bound=Callable[..., object])


class Context(Protocol):
    """Whatever else forward leaves for backward, a subclass of this declares."""

    needs_input_grad: tuple[bool, ...]

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]: ...

    def save_for_backward(self, *tensors: Tensor | None) -> None: ...


class ShapedContext(Context, Protocol):
    """Of a function that takes rows of its input's last dimension."""

    shape: torch.Size
    """The input's."""


def once_differentiable(backward: Backward) -> Backward:
    """`torch.autograd.function.once_differentiable`, with the signature of ``backward``."""
    return cast(Backward, function.once_differentiable(backward))
