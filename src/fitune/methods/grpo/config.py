"""grpo: its rule and its facts. Its settings section is shared (`fitune.methods.rl_config`)."""

from __future__ import annotations

from collections.abc import Iterator

from fitune.methods.method import ANSWER_METRICS, Fault, Method, OnlineDefaults, RuleInputs
from fitune.methods.rl_config import RlSettings, rl_rules


def rules(rl: RlSettings, inputs: RuleInputs) -> Iterator[Fault]:
    """The shared ones, and that a group has two answers."""
    yield from rl_rules(rl, inputs)
    if rl.answers == 1:
        yield (
            ("rl.answers", "method"),
            "is 1, and method grpo compares the answers to a prompt; use 2 or more, such as 8",
        )


GRPO = Method(
    name="grpo",
    help="rewards for the model's own answers, each against the others to its prompt",
    trainer="fitune.methods.grpo.trainer",
    reads="prompts",
    learning_rates={"lora": 1e-4},
    traced_loss="pairs",
    metrics=("reward", *ANSWER_METRICS),
    section="rl",
    settings=RlSettings,
    unread=("rl.kl_target", "rl.gamma", "rl.lam", "rl.value_coef", "rl.value_clip"),
    sampling=OnlineDefaults(answers=8, passes=1, kl_coef=0.04),
    rules=rules,
    why_lora="finds its reference by switching the adapter off",
    reference_by_switch=True,
    forbids_dropout=True,
    reads_loss_on=False,
)
