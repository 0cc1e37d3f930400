"""orpo: its settings section and its facts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fitune.methods.method import ANSWER_METRICS, Method
from fitune.section import Section


class OrpoSettings(Section):
    """A supervised loss and the odds of two answers in one (method orpo; arXiv 2403.07691)."""

    weight: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the odds ratio beside the supervised loss on the chosen answers; the paper's λ."""
    sft_on: Literal["answer", "all"] = "answer"
    """Tokens of the supervised loss. answer: those of the chosen answers, as in the paper. all: their prompts too, as in
    the authors' code and TRL."""


ORPO = Method(
    name="orpo",
    help="supervised on the chosen answers, and preferences from the odds of both, without a reference",
    trainer="fitune.methods.orpo.trainer",
    reads="pairs",
    learning_rates={"lora": 5e-5, "full": 5e-6},
    traced_loss="pairs",
    metrics=("loss", "accuracy", *ANSWER_METRICS),
    section="orpo",
    settings=OrpoSettings,
    reads_loss_on=False,
)
