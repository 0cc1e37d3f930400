"""dpo: its settings section."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fitune.section import Section


class DpoSettings(Section):
    """Preferences without a reward model (method dpo; arXiv 2305.18290)."""

    loss: Literal["sigmoid", "robust", "ipo"] = "sigmoid"
    """sigmoid: the paper's. robust: unbiased when `label_smoothing` of the pairs are judged wrongly (arXiv 2403.00409).
    ipo: squared, per answer token (arXiv 2310.12036)."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How dear it is to leave the reference; for ipo the paper's τ."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """With sigmoid or robust: the share of pairs that are taken for judged wrongly."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the supervised loss on the chosen answers beside it (arXiv 2404.19733 takes 1): keeps their probability
    from falling where the two answers of a pair are much alike."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """precomputed: the reference's log-probabilities are taken once before step one. live: each step asks the reference
    again, with the adapter off (or the earlier run's, frozen). The losses are the same."""
