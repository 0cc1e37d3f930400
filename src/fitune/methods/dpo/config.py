"""dpo: its settings section, its rules and its facts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from fitune.methods.method import ANSWER_METRICS, Fault, Method, RuleInputs
from fitune.section import Section


class DpoSettings(Section):
    """Preferences without a reward model (method dpo; arXiv 2305.18290)."""

    loss: Literal["sigmoid", "robust", "ipo"] = "sigmoid"
    """sigmoid: the original loss. robust: unbiased if a share `label_smoothing` of the pairs is labelled wrongly
    (arXiv 2403.00409). ipo: squared loss per answer token (arXiv 2310.12036)."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """Strength of the KL penalty against the reference; for ipo the paper's τ."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """With sigmoid or robust: assumed share of wrongly labelled pairs."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of an additional supervised loss on the chosen answers (arXiv 2404.19733 uses 1). It keeps their probability
    from falling when the two answers of a pair are very similar."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """precomputed: the reference's log-probabilities are computed once before step one. live: they are computed in each
    step, with the adapter switched off (a continued adapter: with a frozen copy of it). The losses are the same."""


def rules(dpo: DpoSettings, inputs: RuleInputs) -> Iterator[Fault]:
    """What the loss does not read, and what leaves a live reference without its base."""
    if dpo.label_smoothing and dpo.loss == "ipo":
        yield ("dpo.label_smoothing", "dpo.loss"), "is set, and dpo.loss ipo does not use it; remove it"
    if dpo.loss == "robust" and not dpo.label_smoothing:
        yield (
            ("dpo.loss", "dpo.label_smoothing"),
            "is robust, which corrects for wrong labels, and dpo.label_smoothing is 0; set it, for example 0.1, or use "
            "sigmoid",
        )
    if dpo.reference != "live":
        return
    if inputs.tuning == "full":
        yield (
            ("dpo.reference", "train.tuning"),
            "is live, and train.tuning is full, which has no adapter to switch off; use precomputed",
        )
    for key, value, plain in inputs.moves_the_base:
        yield (
            ("dpo.reference", key),
            f"is live, and {key} is {value}: with the adapter switched off, the model is not the one that training began with; use "
            f"precomputed, or {key} {plain}",
        )


DPO = Method(
    name="dpo",
    help="preference learning from such pairs, without a reward model",
    trainer="fitune.methods.dpo.trainer",
    reads="pairs",
    learning_rates={"lora": 5e-5, "full": 1e-6},
    traced_loss="pairs",
    metrics=("loss", "accuracy", *ANSWER_METRICS),
    section="dpo",
    settings=DpoSettings,
    rules=rules,
    reads_loss_on=False,
)
