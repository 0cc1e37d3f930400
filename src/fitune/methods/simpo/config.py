"""simpo: its settings section and its facts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fitune.methods.method import ANSWER_METRICS, Method
from fitune.section import Section


class SimpoSettings(Section):
    """Preferences by mean log-probability a token (method simpo; arXiv 2405.14734)."""

    beta: Annotated[float, Field(gt=0)] = 2.0
    """Scale of the rewards, which are β times an answer's mean log-probability a token."""
    gamma: Annotated[float, Field(ge=0)] = 1.0
    """Margin by which the chosen answer's reward should exceed the other's. The paper tunes gamma over beta, near 0.5."""


SIMPO = Method(
    name="simpo",
    help="preferences by mean log-probability a token and a margin, without a reference",
    trainer="fitune.methods.simpo.trainer",
    reads="pairs",
    learning_rates={"lora": 5e-5, "full": 1e-6},
    traced_loss="pairs",
    metrics=("loss", "accuracy", *ANSWER_METRICS),
    section="simpo",
    settings=SimpoSettings,
    reads_loss_on=False,
)
