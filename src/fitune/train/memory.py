"""The most memory that the process or the card has held, for the log."""

from __future__ import annotations

import resource
import sys

import torch


def peak_memory_bytes(device: str) -> int:
    """Peak of memory: allocated tensors on a CUDA GPU, else the resident size of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
