"""kto: its settings section and its facts."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fitune.methods.method import ANSWER_METRICS, Method
from fitune.section import Section


class KtoSettings(Section):
    """Single answers that are wanted or not, without pairs (method kto; arXiv 2402.01306)."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How dear it is to leave the reference."""
    desirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the rows whose label is true."""
    undesirable_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the rows whose label is false. The paper advises weights under which the true ones count 1 to 1.33 times
    as much in all as the false ones."""


KTO = Method(
    name="kto",
    help="from single answers that are labelled good or bad, without pairs",
    trainer="fitune.methods.kto.trainer",
    reads="judged",
    learning_rates={"lora": 5e-5, "full": 1e-6},
    traced_loss="pairs",
    metrics=("loss", "accuracy", *ANSWER_METRICS),
    section="kto",
    settings=KtoSettings,
    reads_loss_on=False,
)
