"""AdamW (arXiv 1711.05101) by torch: two states in the type of the weight (torch/optim/adam.py, 2.5 to 2.15)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from fitune.ops.optimizers.optimizer import Optimizer, Shape, States, count_of

if TYPE_CHECKING:
    import torch
    from torch import nn

STEP = 4  # the fused kernel keeps its step count, an fp32 number, on the device


def _fused(shape: Shape, itemsize: int) -> States:
    return States((STEP, *_plain(shape, itemsize).held))


def _plain(shape: Shape, itemsize: int) -> States:
    return States((count_of(shape) * itemsize,) * 2)


def _roots(sizes: Sequence[int]) -> Iterable[Sequence[int]]:
    return [sizes]  # _multi_tensor_adam: _foreach_sqrt of every second moment at once


def _root_and_quotient(sizes: Sequence[int]) -> Iterable[Sequence[int]]:
    return [(size, size) for size in sizes]  # _single_tensor_adam: sqrt, then its quotient


def _made(
    parameters: Sequence[nn.Parameter], rate: float, fused: bool | None = None, foreach: bool | None = None
) -> torch.optim.Optimizer:
    import torch

    return torch.optim.AdamW(parameters, lr=rate, fused=fused, foreach=foreach)


ADAMW = Optimizer(
    name="adamw",
    help="AdamW, two fp32 states",
    library="torch",
    optim="adamw_torch_fused",
    states=_fused,
    step_bytes=28,
    lighter="adamw_8bit",
    make=lambda parameters, rate: _made(parameters, rate, fused=True),
)
ADAMW_FOREACH = Optimizer(
    name="adamw_foreach",
    help="torch's AdamW over lists of tensors",
    library="torch",
    states=_plain,
    temporaries=_roots,
    step_bytes=52,
    make=lambda parameters, rate: _made(parameters, rate, foreach=True),
)
ADAMW_LOOP = Optimizer(
    name="adamw_loop",
    help="torch's AdamW, one tensor after another",
    library="torch",
    states=_plain,
    temporaries=_root_and_quotient,
    step_bytes=60,
    make=lambda parameters, rate: _made(parameters, rate, foreach=False),
)
