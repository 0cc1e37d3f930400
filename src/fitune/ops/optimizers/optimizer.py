"""What an optimizer is: its facts, the sizes of its states, and how it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Shape = Sequence[int]
# A side of the matrix by which the bytes of a value are told: large enough for every threshold of an optimizer.
LARGE = 4096


@dataclass(frozen=True)
class States:
    """What an optimizer keeps from its first step on."""

    held: tuple[int, ...] = ()
    """Bytes of each tensor on the device, in the order in which they are made."""
    paged: int = 0
    """Bytes in CUDA's managed memory, which move to the host when the card is full."""

    @property
    def total(self) -> int:
        """All bytes, wherever they are: what a checkpoint holds of them."""
        return sum(self.held) + self.paged


def no_temporaries(_: Sequence[int]) -> Iterable[Sequence[int]]:
    """For an optimizer that works in place."""
    return ()


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One optimizer. What needs torch is imported inside its functions: settings and plans read the rest.

    Attributes:
        name: as in `train.optimizer`.
        help: what it is, for the help and the documents.
        library: whose code it is: torch, transformers or bitsandbytes.
        optim: its name in `TrainingArguments.optim`; empty for one that only the plans of other tools' loops know.
        states: (shape, bytes of a value) of a trained tensor → what is kept of it.
        once: bytes of each tensor that is kept once, whatever is trained.
        temporaries: bytes of each trained tensor → the tensors that a step makes beside them, in groups that are alive
            together.
        runs_on_meta: its own code runs on meta tensors, and the plan takes that in place of `states` and `temporaries`.
        step_bytes: bytes that a step reads and writes for each trained value: weight, gradient and states, in fp32.
        paged: its states may move to the host.
        on_cpu: the optimizer that a CPU takes in its place.
        lighter: the optimizer with smaller states that the fit ladder may take in its place.
        rung: what the ladder calls it, and what it costs in quality.
        make: (parameters, learning rate) → the optimizer that transformers' Trainer makes for `optim`.
    """

    name: str
    help: str
    library: str
    optim: str = ""
    states: Callable[[Shape, int], States]
    once: tuple[int, ...] = ()
    temporaries: Callable[[Sequence[int]], Iterable[Sequence[int]]] = no_temporaries
    runs_on_meta: bool = False
    step_bytes: int
    paged: bool = False
    on_cpu: str = ""
    lighter: str = ""
    rung: tuple[str, str] = ("", "")
    make: Callable[[Sequence[nn.Parameter], float], torch.optim.Optimizer]

    def states_of(self, tensors: Iterable[Tensor]) -> States:
        """What is kept of all these tensors together."""
        found = [self.states(tuple(tensor.shape), tensor.element_size()) for tensor in tensors]
        return States((*self.once, *(size for one in found for size in one.held)), sum(one.paged for one in found))

    def bytes_per_value(self, itemsize: int = 4) -> float:
        """Bytes of states that one more value of a large matrix costs.

        Args:
            itemsize: bytes of the value itself.
        """
        one, two = (self.states((rows, LARGE), itemsize).total for rows in (LARGE, 2 * LARGE))
        return (two - one) / LARGE**2


def count_of(shape: Shape) -> int:
    """Values of a tensor."""
    return math.prod(shape)
