"""PPO and GRPO on a bandit: one token is one answer, a few tokens pay, and the optimum is known in closed form.

With rewards r, reference ρ and KL coefficient β the best policy is π(a) ∝ ρ(a)·exp(r(a)/β) where the distance is paid
out of the reward (PPO, RLOO; Ziegler et al. 2019, arXiv 1909.08593, section 2). GRPO's penalty in the loss has the
gradient of KL(ρ ‖ π) on the policy's own answers, so there Σπr − β·KL(ρ ‖ π) is greatest: π(a) = β·ρ(a)/(λ − r(a)) with
λ such that they sum to 1. Without a penalty the best policy is the best arm alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fitune.methods.grpo.trainer import GrpoOptions, GrpoTrainer
from fitune.methods.ppo.trainer import PpoOptions, PpoTrainer

KINDS = {
    "ppo": (PpoTrainer, PpoOptions, {"num_iterations": 2}),
    "grpo": (GrpoTrainer, GrpoOptions, {"num_iterations": 2}),
    "rloo": (GrpoTrainer, GrpoOptions, {"num_iterations": 1}),
}


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_the_best_arm_is_found(kind: str, tiny: Any, tmp_path: Path) -> None:
    trainer_kind, options, changed = KINDS[kind]
    trainer = tiny.bandit(tmp_path, trainer_kind, options(kl_coef=0.0), steps=20, **changed)
    best = max(trainer.arms, key=trainer.arms.get)
    assert tiny.first_token(trainer.model)[best] < 0.15
    trainer.train()
    assert tiny.first_token(trainer.model)[best] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo", "rloo"])
def test_with_a_penalty_the_policy_is_the_reference_tilted_by_the_rewards(kind: str, tiny: Any, tmp_path: Path) -> None:
    trainer_kind, options, changed = KINDS[kind]
    beta = 0.5
    more = {"scale_rewards": False} if kind == "grpo" else {"advantage": "rloo"} if kind == "rloo" else {}
    trainer = tiny.bandit(
        tmp_path, trainer_kind, options(kl_coef=beta, **more), steps=40, num_generations=32, **changed
    )
    trainer.train()
    with trainer.model.disable_adapter():
        reference = tiny.first_token(trainer.model)
    rewards = torch.full((64,), -0.5)
    for arm, reward in trainer.arms.items():
        rewards[arm] = reward
    best = forward_optimum(reference, rewards, beta) if kind == "grpo" else reference * torch.exp(rewards / beta)
    best = best / best.sum()
    far, near = (reference - best).abs().sum() / 2, (tiny.first_token(trainer.model) - best).abs().sum() / 2
    assert near < 0.1 < 0.3 < far


def forward_optimum(reference: torch.Tensor, rewards: torch.Tensor, beta: float) -> torch.Tensor:
    """argmax of Σπr − β·KL(ρ ‖ π), by halving the interval of λ."""
    low, high = float(rewards.max()), float(rewards.max()) + 2 * beta
    for _ in range(60):
        middle = (low + high) / 2
        total = float((beta * reference / (middle - rewards)).sum())
        low, high = (middle, high) if total > 1 else (low, middle)
    return beta * reference / (high - rewards)
