r"""kto: single answers that are wanted or not (Ethayarajh et al. 2024, arXiv 2402.01306, equations 7 and 8).

With r = log π(y|x)/π_ref(y|x), summed over the answer's tokens:

    desirable      w_desirable · (1 − σ(β(r − z)))
    undesirable    w_undesirable · (1 − σ(β(z − r)))
    z              max(0, mean of log π(y'|x)/π_ref(y'|x)), where y' answers another prompt

z estimates the KL divergence between the model and the reference, has no gradient, and is taken over all rows of a step
(of the held-out rows in an evaluation), however they are laid out in passes. Which y' a row has is decided once, by its
place in the file (data/judged.py), so that the reference's log-probabilities of both are taken once, before step one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from fitune.console import log, warn
from fitune.data.token_rows import JudgedRow, TokenRow
from fitune.methods.context import RunContext
from fitune.methods.kto.config import KtoSettings
from fitune.methods.runtime import Runtime
from fitune.methods.trainer_parts import answer_pair_parts
from fitune.ops.token_logprobs import RowBatch, sum_by_row, token_logprobs
from fitune.trainers.oom_recovery import OomRecovery
from fitune.trainers.preference import Measured, PairOptions, PairTrainer
from fitune.trainers.sampler import rows_met

# The paper's equation 8: how much more the desirable rows may weigh in all.
BALANCED = (1.0, 4 / 3)


def make_trainer(run: RunContext, model: nn.Module) -> KtoTrainer:
    """The trainer with everything that listens to it, its reference measured."""
    kto, train, held_out = run.own(KtoSettings), run.data.train, run.data.eval
    if advice := unbalanced(train, kto.desirable_weight, kto.undesirable_weight):
        warn(advice)
    met = rows_met(train, run.schedule.steps, run.batch_size, run.seed)
    trainer = KtoTrainer(
        model,
        run.arguments,
        beta=kto.beta,
        desirable_weight=kto.desirable_weight,
        undesirable_weight=kto.undesirable_weight,
        **answer_pair_parts(run, model, met),
    )
    log(
        f"reference: log-probabilities of {len(met) + len(held_out):,} answers before step one, and of as many mismatched ones"
    )
    trainer.take_reference([*met, *held_out])
    return trainer


def unbalanced(rows: Sequence[JudgedRow], desirable_weight: float, undesirable_weight: float) -> str | None:
    """What to set when one kind of rows weighs more in all than the paper advises; None when all is well."""
    wanted = sum(row.desirable for row in rows)
    unwanted = len(rows) - wanted
    if not (wanted * desirable_weight and unwanted * undesirable_weight):
        return None
    ratio = wanted * desirable_weight / (unwanted * undesirable_weight)
    if BALANCED[0] - 1e-9 <= ratio <= BALANCED[1] + 1e-9:
        return None
    key, value = "desirable_weight", unwanted * undesirable_weight / wanted
    if ratio > 1:
        key, value = "undesirable_weight", wanted * desirable_weight / unwanted
    return (
        f"{wanted:,} desirable and {unwanted:,} undesirable answers weigh {ratio:.2f} to 1 in all, and the paper advises "
        f"1 to 1.33; kto.{key} {value:.3g} makes it 1"
    )


class KtoTrainer(PairTrainer[JudgedRow]):
    """Judged rows under the losses above, one answer a row.

    Args:
        beta: how dear it is to leave the reference.
        desirable_weight, undesirable_weight: of the two kinds of rows.
    """

    part = "answer"

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        beta: float = 0.1,
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
        **parts: Unpack[PairOptions[JudgedRow]],
    ):
        super().__init__(model, args, **parts)
        self.beta, self.weights = beta, (undesirable_weight, desirable_weight)
        self.reference: dict[TokenRow, tuple[float, ...]] = {}
        """Log-probability under the reference, by the row or the mismatched row."""
        self.kl = 0.0

    def take_reference(self, rows: Sequence[JudgedRow]) -> None:
        """Measure the reference's log-probabilities of ``rows`` and their mismatched ones with the model as it stands."""
        self.reference |= self.reference_logprobs([*rows, *(row.mismatched for row in rows)])

    def survey(self, pairs: Sequence[JudgedRow], recovery: OomRecovery) -> list[float]:
        """log π/π_ref of the mismatched answers."""
        others = [row.mismatched for row in pairs]
        now = self.answer_logprobs(others, recovery)
        return [now[row][0] - self.reference[row][0] for row in others]

    def heed(self, surveyed: Sequence[float]) -> None:
        """Estimate z over all rows that the loss is averaged over."""
        self.kl = max(math.fsum(surveyed) / len(surveyed), 0.0)

    def pair_losses(self, model: nn.Module, row_batch: RowBatch, pairs: Sequence[JudgedRow]) -> tuple[Tensor, Measured]:
        """A loss a row; measured: the implicit reward β·log π/π_ref, and whether the loss's σ is on the label's side."""
        sums = sum_by_row(token_logprobs(model, row_batch), row_batch)
        ratios = sums - torch.tensor([self.reference[row][0] for row in pairs], device=sums.device)
        desirable = torch.tensor([row.desirable for row in pairs], device=sums.device)
        losses = kto_loss(ratios, desirable, self.kl, self.beta, self.weights)
        ahead = torch.where(desirable, 1.0, -1.0) * (ratios.detach() - self.kl)
        return losses, {
            "accuracy": (ahead > 0).float() + 0.5 * (ahead == 0).float(),
            "kl": torch.full_like(ahead, self.kl),
            "reward": self.beta * ratios.detach(),
        }

    def summarize(self, measured: Measured, pairs: Sequence[JudgedRow]) -> dict[str, float]:
        """The means, with rewards by label, and their difference where there are both."""
        rewards = measured["reward"]
        desirable = torch.tensor([row.desirable for row in pairs], device=rewards.device)
        means = {
            f"reward_{name}": rewards[here].mean().item()
            for name, here in (("desirable", desirable), ("undesirable", ~desirable))
            if here.any()
        }
        if len(means) == 2:
            means = {"margin": means["reward_desirable"] - means["reward_undesirable"], **means}
        return {name: measured[name].mean().item() for name in ("accuracy", "kl")} | means


def kto_loss(
    ratios_R: Tensor, desirable_R: Tensor, kl: float, beta: float, weights: tuple[float, float] = (1.0, 1.0)
) -> Tensor:
    """R losses from log-ratios π/π_ref of the answers.

    Args:
        desirable_R: whether an answer is wanted.
        kl: z, at least 0.
        weights: of the undesirable and of the desirable rows.
    """
    distance = beta * torch.where(desirable_R, ratios_R - kl, kl - ratios_R)
    return torch.where(desirable_R, weights[1], weights[0]) * (1 - torch.sigmoid(distance))


RUNTIME = Runtime(make_trainer=make_trainer)
