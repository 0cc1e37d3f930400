"""Memory of the process or the card: its peak so far, letting go of it, and errors that say there is none left."""

from __future__ import annotations

import gc
import resource
import sys

import torch

# What libraries raise in place of torch.OutOfMemoryError: torch's allocator for the CPU, cuBLAS, bitsandbytes.
OTHER_WORDS = (
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "out of memory at line",
)


def peak_memory_bytes(device: str) -> int:
    """Peak of memory: allocated tensors on a CUDA GPU, else the resident size of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had."""
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in OTHER_WORDS)


def free_memory() -> None:
    """Let go of what a failed pass held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
