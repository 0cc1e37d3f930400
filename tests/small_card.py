"""A device that is too small, for tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook


@contextmanager
def card_with_room_for(device: str, positions: int, bytes_: int) -> Iterator[None]:
    """A card too small for larger passes: a real limit on the process's memory, or on a CPU a pass that raises.

    Args:
        positions: tokens of a pass with gradients, on a CPU.
        bytes_: of the process, on a card.
    """
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(bytes_ / torch.cuda.get_device_properties(0).total_memory)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return

    def refuse(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if type(module).__name__.endswith("RotaryEmbedding") and torch.is_grad_enabled():
            rows, width = inputs[0].shape[:2]
            if rows * width > positions:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    handle = register_module_forward_hook(refuse)
    try:
        yield
    finally:
        handle.remove()
