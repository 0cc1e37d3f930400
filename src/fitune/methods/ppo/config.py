"""ppo: what it does not share with other methods that learn from rewards (`fitune.methods.rl_config`)."""

from __future__ import annotations

from fitune.methods.method import OnlineDefaults
from fitune.methods.rl_config import online_method, rl_rules

PPO = online_method(
    name="ppo",
    help="reinforcement learning from rewards for the model's answers, with a value head",
    trainer="fitune.methods.ppo.trainer",
    unread=("rl.advantage", "rl.scale_rewards"),
    sampling=OnlineDefaults(num_generations=4, num_iterations=4, kl_coef=0.05),
    rules=rl_rules,
)
