"""What the rows of a run say about its memory: the size of its largest forward pass. Plain values; torch is not imported."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LargestPass:
    """What the rows say about memory: the largest forward pass of the run."""

    longest_tokens: int
    """Tokens of the longest row."""
    label_share: float
    """Share of the pass's positions that have a label."""
    pack_tokens: int | None = None
    """Computed tokens of the largest pack; None when rows are padded."""
    eval_pack_tokens: int | None = None
    """The same of the held-out rows."""
    prompt_tokens: int | None = None
    """The longest prompt that is answered in an evaluation; None is taken for a whole row."""
