"""ppo: the policy earns rewards and stays near its reference (Schulman 2017, arXiv 1707.06347; for language models
Ziegler 2019, arXiv 1909.08593).

One base, four parts: the policy is its adapter, the reference is the base with the adapter off, the values come from a
scalar head on the policy's own hidden states, and the reward is a function, a reward run's adapter and head, or both.

A step: answers are sampled and scored; each token pays for its distance from the reference, the last one earns the
score; advantages by GAE; then several passes of clipped updates over the same answers.

B answers, T tokens of the longest, R answers of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainingArguments

from fitune.data.token_rows import PromptRow
from fitune.methods.context import RunContext
from fitune.methods.ppo.config import PPO
from fitune.methods.rl_config import RlSettings
from fitune.methods.rl_setup import adapt_policy, choose_rl, make_online_trainer
from fitune.methods.runtime import Runtime
from fitune.models.heads import put_head
from fitune.trainers.base import Collate
from fitune.trainers.online_rl import MicroBatch, OnlineOptions, OnlineRLTrainer
from fitune.trainers.rl.losses import (
    adapted_coefficient,
    explained_variance,
    gae,
    kl_estimate,
    masked_mean,
    penalised_rewards,
    policy_loss,
    value_loss,
    whiten,
)
from fitune.trainers.rl.rollout import RolloutBatch


@dataclass(frozen=True)
class PpoOptions:
    """The plain values of the settings' ``rl`` section that ppo reads."""

    kl_coef: float = 0.05
    kl_target: float | None = None
    clip: float = 0.2
    clip_high: float = 0.2
    gamma: float = 1.0
    gae_lambda: float = 0.95
    value_coef: float = 0.1
    value_clip: float | None = 0.2
    ratio: str = "token"


class PpoTrainer(OnlineRLTrainer):
    """Proximal policy optimization over sampled answers."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_rows: Sequence[PromptRow],
        eval_rows: Sequence[PromptRow],
        collate: Collate[PromptRow],
        *,
        options: PpoOptions,
        **parts: Unpack[OnlineOptions],
    ):
        super().__init__(model, args, train_rows, eval_rows, collate, values=True, **parts)
        self.options = options

    def learn(self, answered: RolloutBatch, scores_B: Tensor) -> dict[str, float | Tensor]:
        """From scores to gradients."""
        how, mask = self.options, self.mask
        micro_batches = self.micro_batches(answered)

        # What policy, reference and value head think of the answers, before anything is learnt from them.
        before, reference = (
            self.score_no_grad(micro_batches, reference=False),
            self.score_no_grad(micro_batches, reference=True),
        )
        assert before.values is not None
        kl_coef = float(self.extra_state.get("kl_coef", how.kl_coef))
        rewards = penalised_rewards(scores_B, before.logp, reference.logp, mask, kl_coef)
        advantages = gae(rewards, before.values, mask, how.gamma, how.gae_lambda)
        returns = (advantages + before.values) * mask
        advantages = whiten(advantages, mask)

        def learn_from(part: MicroBatch, weights: Tensor, tokens: int) -> dict[str, float]:
            seen, at = self.forward(part), part.numbers
            assert seen.values is not None and before.values is not None
            policy, clipped = policy_loss(
                seen.logp, before.logp[at], advantages[at], mask[at], how.clip, how.clip_high, how.ratio
            )
            value = value_loss(seen.values, before.values[at], returns[at], mask[at], how.value_clip)
            loss = ((policy + how.value_coef * value) * weights).sum()
            self.backward(loss)
            return {
                "loss": loss.item(),
                "policy_loss": (policy * weights).sum().item(),
                "value_loss": (value * weights).sum().item(),
                "clip_fraction": clipped.sum().item() / tokens,
            }

        learnt = self.take_updates(micro_batches, learn_from)
        kl = float((kl_estimate(before.logp, reference.logp) * mask).sum(1).mean())
        if how.kl_target is not None:
            self.extra_state["kl_coef"] = adapted_coefficient(kl_coef, kl, how.kl_target)
        return {
            **learnt,
            "kl": kl,
            "kl_coef": kl_coef,
            "entropy": -masked_mean(before.logp, mask),  # sampled by the policy itself: its mean is the entropy
            "explained_variance": explained_variance(before.values, returns, mask),
        }


def adapt(run: RunContext) -> PeftModel:
    """The policy with a value head that knows nothing yet."""
    model = adapt_policy(run)
    put_head(model, offset=True, spread=0.0)
    return model


def make_trainer(run: RunContext, model: nn.Module) -> OnlineRLTrainer:
    """The trainer with everything that listens to it."""
    rl, chosen = run.own(RlSettings), choose_rl(run, PPO)
    options = PpoOptions(
        kl_coef=chosen.kl_coef,
        kl_target=rl.kl_target,
        clip=rl.clip,
        clip_high=rl.clip_high or rl.clip,
        gamma=rl.gamma,
        gae_lambda=rl.gae_lambda,
        value_coef=rl.value_coef,
        value_clip=rl.value_clip,
        ratio=rl.ratio,
    )
    return make_online_trainer(PpoTrainer, options, chosen, run, model)


RUNTIME = Runtime(make_trainer=make_trainer, adapt=adapt)
