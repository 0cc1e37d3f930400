"""reward: its settings section and its facts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fitune.methods.method import Method
from fitune.section import Section


class RewardSettings(Section):
    """A reward model (method reward), trained with the Bradley-Terry loss on pairs."""

    center: Annotated[float, Field(ge=0)] = 0.01
    """Weight of (r_chosen + r_rejected)², which keeps rewards centred on 0 (arXiv 2312.09244); 0 disables it."""


REWARD = Method(
    name="reward",
    help="a reward model, trained on pairs of a chosen and a rejected answer",
    trainer="fitune.methods.reward.trainer",
    reads="pairs",
    learning_rates={"lora": 2e-4},
    traced_loss="rewards",
    metrics=("loss", "accuracy"),
    answer_metrics=(),
    section="reward",
    settings=RewardSettings,
    why_lora="trains an adapter and a head over a frozen base",
    reads_loss_on=False,
    makes_judge=True,
)
