"""Which of several processes this is, from the variables that torchrun and accelerate set. Imports no torch."""

from __future__ import annotations

import os


def size() -> int:
    """Processes that train together; 1 outside of torchrun."""
    return max(int(os.environ.get("WORLD_SIZE", "1")), 1) if "RANK" in os.environ else 1


def rank() -> int:
    """Number of this process, from 0."""
    return int(os.environ["RANK"]) if size() > 1 else 0


def local_rank() -> int:
    """Number of this process on its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if size() > 1 else 0


def is_first() -> bool:
    """Whether this is rank 0, which alone writes files, logs and shows progress."""
    return rank() == 0


def share(count: int) -> slice:
    """This rank's part of ``count`` things in order; parts differ by one at most, and lie in the order of the ranks."""
    return slice(count * rank() // size(), count * (rank() + 1) // size())
