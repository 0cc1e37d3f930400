"""lm: the facts of next-token prediction on plain text. It trains as sft does."""

from __future__ import annotations

from collections.abc import Iterator

from fitune.methods.method import Fault, Method, RuleInputs


def rules(section: object, inputs: RuleInputs) -> Iterator[Fault]:
    """Plain text has no answers that could be trained alone."""
    if inputs.loss_on not in ("auto", "all"):
        yield (
            ("data.loss_on", "method"),
            f"is {inputs.loss_on}, and method lm trains on all tokens; use all, or method sft",
        )


LM = Method(
    name="lm",
    help="next-token prediction on plain text",
    trainer="fitune.methods.sft.trainer",
    reads="text",
    learning_rates={"lora": 2e-4, "full": 2e-5},
    traced_loss="labels",
    metrics=("loss",),
    answer_metrics=(),
    rules=rules,
)
