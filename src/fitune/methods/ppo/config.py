"""ppo: its facts. Its settings section is shared (`fitune.methods.rl_config`)."""

from __future__ import annotations

from fitune.methods.method import ANSWER_METRICS, Method, OnlineDefaults
from fitune.methods.rl_config import RlSettings, rl_rules

PPO = Method(
    name="ppo",
    help="rewards for the model's own answers to prompts, with a value head",
    trainer="fitune.methods.ppo.trainer",
    reads="prompts",
    learning_rates={"lora": 1e-4},
    traced_loss="pairs",
    metrics=("reward", *ANSWER_METRICS),
    section="rl",
    settings=RlSettings,
    unread=("rl.advantage", "rl.scale_rewards"),
    sampling=OnlineDefaults(answers=4, passes=4, kl_coef=0.05),
    rules=rl_rules,
    why_lora="finds its reference by switching the adapter off",
    reference_by_switch=True,
    forbids_dropout=True,
    reads_loss_on=False,
)
