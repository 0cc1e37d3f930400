"""grpo: what it does not share with other methods that learn from rewards (`fitune.methods.rl_config`)."""

from __future__ import annotations

from collections.abc import Iterator

from fitune.methods.method import Fault, OnlineDefaults, RuleInputs
from fitune.methods.rl_config import RlSettings, online_method, rl_rules


def rules(rl: RlSettings, inputs: RuleInputs) -> Iterator[Fault]:
    """The shared ones, and that a group has two answers."""
    yield from rl_rules(rl, inputs)
    if rl.num_generations == 1:
        yield (
            ("rl.num_generations", "method"),
            "is 1, and method grpo compares the answers to a prompt; use 2 or more, such as 8",
        )


GRPO = online_method(
    name="grpo",
    help="reinforcement learning from rewards, each answer compared with the others to its prompt",
    trainer="fitune.methods.grpo.trainer",
    unread=("rl.kl_target", "rl.gamma", "rl.gae_lambda", "rl.value_coef", "rl.value_clip"),
    sampling=OnlineDefaults(num_generations=8, num_iterations=1, kl_coef=0.04),
    rules=rules,
)
