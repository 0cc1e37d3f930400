"""grpo: answers to the same prompt compete, and no value model is needed (DeepSeekMath, arXiv 2402.03300).

One base: the policy is its adapter, the reference the base with the adapter off; rewards as in ppo.

A step: several answers to each prompt are sampled and scored; an answer's advantage is how far it lies above the others
to its prompt; clipped updates with the distance from the reference in the loss. The prompt of a group is computed once.
(That loss, taken on the policy's own answers, has the gradient of KL(reference ‖ policy), not of KL(policy ‖ reference);
RLOO, arXiv 2402.14740, has the latter, since it pays for the distance out of the reward.)

The variants: ``rl.advantage`` group or rloo, ``rl.scale_rewards`` off for Dr. GRPO, ``rl.loss_aggregation`` token (DAPO),
answer (GRPO) or constant (Dr. GRPO), ``rl.clip_high`` for DAPO's wider upper side, ``rl.ratio: answer`` for GSPO.

B answers, G to a prompt, T tokens of the longest, R answers of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from fitune.data.token_rows import PromptRow
from fitune.methods.context import RunContext
from fitune.methods.grpo.config import GRPO
from fitune.methods.rl_config import RlSettings
from fitune.methods.rl_setup import adapt_policy, choose_rl, make_online_trainer
from fitune.methods.runtime import Runtime
from fitune.trainers.base import Collate
from fitune.trainers.online_rl import MicroBatch, OnlineOptions, OnlineRLTrainer
from fitune.trainers.rl.losses import (
    group_advantages,
    kl_estimate,
    masked_mean,
    policy_loss,
    rloo_advantages,
)
from fitune.trainers.rl.rollout import RolloutBatch


@dataclass(frozen=True)
class GrpoOptions:
    """The plain values of the settings' ``rl`` section that grpo reads."""

    kl_coef: float = 0.04
    clip: float = 0.2
    clip_high: float = 0.2
    advantage: str = "group"
    scale_rewards: bool = True
    ratio: str = "token"


class GrpoTrainer(OnlineRLTrainer):
    """Group-relative policy optimization."""

    compares_groups = True

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_rows: Sequence[PromptRow],
        eval_rows: Sequence[PromptRow],
        collate: Collate[PromptRow],
        *,
        options: GrpoOptions,
        **parts: Unpack[OnlineOptions],
    ):
        super().__init__(model, args, train_rows, eval_rows, collate, **parts)
        self.options = options

    def learn(self, answered: RolloutBatch, scores_B: Tensor) -> dict[str, float | Tensor]:
        """From scores to gradients."""
        how, mask = self.options, self.mask
        micro_batches = self.micro_batches(answered)
        group = answered.per_prompt

        # With a single update the policy that learns is the one that sampled: its own pass tells the old log-probabilities.
        leave_one_out = how.advantage == "rloo"
        several = self.rollout.num_iterations * min(self.rollout.minibatches, len(micro_batches)) > 1
        before = (
            self.score_no_grad(micro_batches, reference=False).logp
            if several or (leave_one_out and how.kl_coef)
            else None
        )
        reference = self.score_no_grad(micro_batches, reference=True).logp if how.kl_coef else None
        if leave_one_out:  # the distance from the reference is part of the reward
            if before is not None and reference is not None:
                scores_B = scores_B - how.kl_coef * (kl_estimate(before, reference) * mask).sum(1)
            advantages = rloo_advantages(scores_B, group)[:, None] * mask
        else:
            advantages = group_advantages(scores_B, group, how.scale_rewards)[:, None] * mask

        old = torch.zeros_like(mask, dtype=torch.float32) if before is None else before

        def learn_from(part: MicroBatch, weights: Tensor, tokens: int) -> dict[str, float]:
            logp, at = self.forward(part).logp, part.numbers
            if before is None:
                old[at] = logp.detach()
            policy, clipped = policy_loss(logp, old[at], advantages[at], mask[at], how.clip, how.clip_high, how.ratio)
            loss = policy_part = (policy * weights).sum()
            if reference is not None and not leave_one_out:
                loss = loss + how.kl_coef * (kl_estimate(logp, reference[at], "k3") * mask[at] * weights).sum()
            self.backward(loss)
            return {
                "policy_loss": policy_part.item(),
                "loss": loss.item(),
                "clip_fraction": clipped.sum().item() / tokens,
            }

        learnt = self.take_updates(micro_batches, learn_from)
        if before is None:
            old = self.whole(old)
        watched: dict[str, float | Tensor] = {"entropy": -masked_mean(old, mask)}
        if reference is not None:
            watched |= {"kl": (kl_estimate(old, reference) * mask).sum(1).mean(), "kl_coef": how.kl_coef}
        return {**learnt, **watched}


def make_trainer(run: RunContext, model: nn.Module) -> OnlineRLTrainer:
    """The trainer with everything that listens to it."""
    rl, chosen = run.own(RlSettings), choose_rl(run, GRPO)
    options = GrpoOptions(
        kl_coef=chosen.kl_coef,
        clip=rl.clip,
        clip_high=rl.clip_high or rl.clip,
        advantage=rl.advantage,
        scale_rewards=rl.scale_rewards,
        ratio=rl.ratio,
    )
    return make_online_trainer(GrpoTrainer, options, chosen, run, model)


RUNTIME = Runtime(make_trainer=make_trainer, adapt=adapt_policy)
