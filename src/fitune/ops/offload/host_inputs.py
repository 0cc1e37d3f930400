"""Inputs of checkpointed layers, in the host's memory between a layer's forward and its backward pass.

In: a model whose layers are checkpointed. Out: the same model; what a layer's checkpoint keeps (its input, tokens × hidden
size) goes to pinned memory of the host while the next layer computes, and comes back one layer ahead of the backward pass.
Knows nothing of training loops. The numbers are the same to the bit: only where they lie differs.

On a card two inputs are there at most in either pass, on their way (a stream of its own copies them). On a CPU the host
is the same memory, and copies are made that nobody needs: for tests. On the meta device bytes are counted, for the plan.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

T = TypeVar("T")
Checkpoint = Callable[..., T]
# Smaller tensors stay: they save nothing, and each transfer costs some 10 µs.
SMALLEST_BYTES = 2**18


@dataclass(eq=False)
class _Kept:
    """One input, on the host."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device
    host: Tensor | None
    """None on the meta device."""
    arrived: torch.cuda.Event | None
    """When it is on the host."""
    earlier: weakref.ref[_Kept] | None
    """The one kept before, which the backward pass needs next."""
    leaving: Tensor | None = None
    """On the card still, on its way to the host. Detached: it must not keep the graph below it alive."""
    fetched: Tensor | None = None
    """Back on the card, or on its way there."""
    back: torch.cuda.Event | None = None

    @property
    def num_bytes(self) -> int:
        return self.shape.numel() * self.dtype.itemsize


class HostInputs:
    """The inputs of one model's checkpointed layers.

    Args:
        smallest_bytes: tensors below this size stay where they are.
    """

    def __init__(self, smallest_bytes: int = SMALLEST_BYTES):
        self.smallest_bytes = smallest_bytes
        self.host_bytes = 0
        """On the host now."""
        self.peak_bytes = 0
        """On the host together at most."""
        self._last: weakref.ref[_Kept] | None = None
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def checkpoint_by(self, checkpoint: Checkpoint[T]) -> Checkpoint[T]:
        """``checkpoint``, as torch.utils.checkpoint.checkpoint without re-entry, with its inputs kept on the host."""

        def offloaded(function: Callable[..., object], *args: object, **kwargs: object) -> T:
            # Only what the checkpoint itself keeps comes here: inside it, torch's own hooks stand before these.
            with torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack):
                return checkpoint(function, *args, **kwargs)

        return offloaded

    def pack(self, tensor: Tensor) -> Tensor | _Kept:
        """What autograd keeps in a tensor's place."""
        small = tensor.numel() * tensor.element_size() < self.smallest_bytes
        if small or isinstance(tensor, nn.Parameter) or not tensor.is_floating_point():
            return tensor
        self._let_go()
        kept = _Kept(
            shape=tensor.shape, dtype=tensor.dtype, device=tensor.device, host=None, arrived=None, earlier=self._last
        )
        kept.leaving, self._last = tensor.detach(), weakref.ref(kept)
        self._to_host(kept.leaving, kept)
        self.host_bytes += kept.num_bytes
        self.peak_bytes = max(self.peak_bytes, self.host_bytes)
        weakref.finalize(kept, self._freed, kept.num_bytes)
        return kept

    def unpack(self, kept: Tensor | _Kept) -> Tensor:
        """The tensor again; the one kept before it begins to come back."""
        if isinstance(kept, Tensor):
            return kept
        if kept.leaving is not None:
            found = kept.leaving
            self._let_go()
        else:
            self._fetch(kept)
            found = cast(Tensor, kept.fetched)
            if kept.back is not None:
                torch.cuda.current_stream(kept.device).wait_event(kept.back)
        kept.fetched = None
        if kept.earlier is not None and (earlier := kept.earlier()) is not None:
            self._fetch(earlier)
        return found

    def _let_go(self) -> None:
        """The card's copy of the input that left last may go, once it is on the host."""
        last = None if self._last is None else self._last()
        if last is None or last.leaving is None:
            return
        if last.arrived is not None:
            torch.cuda.current_stream(last.device).wait_event(last.arrived)
        last.leaving = None

    def _to_host(self, tensor: Tensor, kept: _Kept) -> None:
        if tensor.device.type == "meta":
            return
        if tensor.device.type != "cuda":
            kept.host = tensor.clone()
            return
        stream = self._stream(tensor.device)
        stream.wait_stream(torch.cuda.current_stream(tensor.device))
        with torch.cuda.stream(stream):
            kept.host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            kept.host.copy_(tensor, non_blocking=True)
        kept.arrived = _recorded(stream)

    def _fetch(self, kept: _Kept) -> None:
        if kept.fetched is not None:
            return
        kept.fetched = torch.empty(kept.shape, dtype=kept.dtype, device=kept.device)
        if kept.host is None:
            return
        if kept.device.type != "cuda":
            kept.fetched.copy_(kept.host)
            return
        stream = self._stream(kept.device)
        # Its memory may have been another tensor's, which the current stream has not done with.
        stream.wait_stream(torch.cuda.current_stream(kept.device))
        with torch.cuda.stream(stream):
            kept.fetched.copy_(kept.host, non_blocking=True)
        kept.back = _recorded(stream)

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]

    def _freed(self, num_bytes: int) -> None:
        self.host_bytes -= num_bytes


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record(stream)
    return event


def keep_inputs_on_host(model: nn.Module, inputs: HostInputs) -> int:
    """Have the checkpointed layers of ``model`` keep their inputs in ``inputs``; to be called once checkpointing is on.

    Returns:
        How many layers there are.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, GradientCheckpointingLayer) and getattr(module, "gradient_checkpointing", False)
    ]
    for layer in layers:
        checkpoint = cast("Checkpoint[Tensor]", layer._gradient_checkpointing_func)
        vars(layer)["_gradient_checkpointing_func"] = inputs.checkpoint_by(checkpoint)
    return len(layers)
