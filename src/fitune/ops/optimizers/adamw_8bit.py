"""AdamW by bitsandbytes: states in 8 bits (arXiv 2110.02861), in managed memory, or both.

Sizes follow bitsandbytes/optim/optimizer.py (0.45 to 0.50).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from fitune.ops.optimizers.optimizer import Optimizer, Shape, States, count_of

if TYPE_CHECKING:
    import torch
    from torch import nn

PAGED_FROM = 100_000  # Optimizer8bit.get_state_buffer: smaller tensors are not paged
SMALLEST_8BIT = 4096  # min_8bit_size: smaller tensors keep fp32 states
BLOCK = 256  # values that share an fp32 scale
MAPS = (256 * 4, 256 * 4)  # the fp32 values that a byte stands for, of each of the two states


def _in_fp32(shape: Shape, itemsize: int) -> States:
    return States((4 * count_of(shape),) * 2)


def _in_fp32_paged(shape: Shape, itemsize: int) -> States:
    count = count_of(shape)
    return States(paged=8 * count) if count >= PAGED_FROM else _in_fp32(shape, itemsize)


def _in_8bit(shape: Shape, itemsize: int) -> States:
    count = count_of(shape)
    return _in_fp32(shape, itemsize) if count < SMALLEST_8BIT else States((*_scales(count), count, count))


def _in_8bit_paged(shape: Shape, itemsize: int) -> States:
    count = count_of(shape)
    return States(_scales(count), 2 * count) if count >= PAGED_FROM else _in_8bit(shape, itemsize)


def _scales(count: int) -> tuple[int, ...]:
    return (4 * -(-count // BLOCK),) * 2


def _made(kind: str, parameters: Sequence[nn.Parameter], rate: float) -> torch.optim.Optimizer:
    import bitsandbytes.optim

    return getattr(bitsandbytes.optim, kind)(parameters, lr=rate)


ADAMW_8BIT = Optimizer(
    name="adamw_8bit",
    help="AdamW with states in 8 bits (arXiv 2110.02861); tensors of less than 4,096 values keep fp32 ones",
    library="bitsandbytes",
    optim="adamw_bnb_8bit",
    states=_in_8bit,
    once=MAPS,
    step_bytes=16,
    rung=(
        "8-bit Adam",
        "states rounded to 8 bits a value; losses as with 32 bits (Dettmers et al. 2021, arXiv 2110.02861)",
    ),
    make=lambda parameters, rate: _made("AdamW8bit", parameters, rate),
)
PAGED_ADAMW_8BIT = Optimizer(
    name="paged_adamw_8bit",
    help="the same, and states move to the host's memory when the GPU is full",
    library="bitsandbytes",
    optim="paged_adamw_8bit",
    states=_in_8bit_paged,
    once=MAPS,
    step_bytes=16,
    paged=True,
    on_cpu="adamw_8bit",
    make=lambda parameters, rate: _made("PagedAdamW8bit", parameters, rate),
)
PAGED_ADAMW = Optimizer(
    name="paged_adamw",
    help="AdamW with fp32 states that move to the host's memory when the GPU is full",
    library="bitsandbytes",
    states=_in_fp32_paged,
    step_bytes=28,
    paged=True,
    on_cpu="adamw",
    make=lambda parameters, rate: _made("PagedAdamW32bit", parameters, rate),
)
