"""reward: its settings section."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fitune.section import Section


class RewardSettings(Section):
    """How a reward model learns (method reward): Bradley and Terry's loss on pairs."""

    center: Annotated[float, Field(ge=0)] = 0.01
    """Weight of (r_chosen + r_rejected)², which keeps rewards around 0 (arXiv 2312.09244); 0 leaves it out."""
