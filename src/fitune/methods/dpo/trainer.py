r"""dpo: preferences without a reward model (Rafailov et al. 2023, arXiv 2305.18290).

With h = log π(chosen)/π_ref(chosen) − log π(rejected)/π_ref(rejected), log-probabilities summed over the answer's tokens:

    sigmoid   −(1 − ε) log σ(βh) − ε log σ(−βh)           equation 7; ε label smoothing (Mitchell 2023, "conservative")
    robust    the same with −ε → +ε, over (1 − 2ε)         Chowdhury et al. 2024, arXiv 2403.00409, equation 12
    ipo       (h' − 1/(2β))²                               Azar et al. 2023, arXiv 2310.12036, equation 17, where h' is h
                                                          with log-probabilities per answer token, as its authors advise

To each, `dpo.sft_weight` times the chosen answer's mean −log π per token may be added (Pang et al. 2024, arXiv 2404.19733,
equation 1): where two answers differ in a few tokens only, the loss above lowers both.

The reference is the model as it stands before step one: the bare base under a fresh adapter, or the earlier run's adapter
that training goes on from. Precomputed, its log-probabilities are taken once, before step one, for the pairs that the run
will meet, by the very model that is then trained: no second model and no second adapter is ever in memory. Live, each step
asks it anew (adapters/reference.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainingArguments

from fitune.adapters.reference import as_reference
from fitune.console import log
from fitune.data.token_rows import PairRow
from fitune.methods.adapt import adapt as adapt_plainly
from fitune.methods.adapt import adapt_with_reference
from fitune.methods.context import RunContext
from fitune.methods.dpo.config import DpoSettings
from fitune.methods.runtime import Runtime
from fitune.methods.trainer_parts import answer_pair_parts
from fitune.ops.token_logprobs import RowBatch, count_by_row, sum_by_row, token_logprobs
from fitune.trainers.preference import Measured, PairOptions, PairTrainer, compared
from fitune.trainers.sampler import rows_met


def adapt(run: RunContext) -> PreTrainedModel | PeftModel:
    """The model with its trained parameters marked; a live reference lies beside an adapter that is trained further."""
    return (adapt_with_reference if run.own(DpoSettings).reference == "live" else adapt_plainly)(run)


def make_trainer(run: RunContext, model: nn.Module) -> DpoTrainer:
    """The trainer with everything that listens to it, its reference measured."""
    dpo, train, held_out = run.own(DpoSettings), run.data.train, run.data.eval
    precomputed, met = dpo.reference == "precomputed", list(train)
    if precomputed:  # the reference of no other pair is measured
        met = rows_met(train, run.schedule.steps, run.batch_size, run.seed)
    trainer = DpoTrainer(
        model,
        run.arguments,
        loss=dpo.loss,
        beta=dpo.beta,
        label_smoothing=dpo.label_smoothing,
        sft_weight=dpo.sft_weight,
        **answer_pair_parts(run, model, met),
    )
    if precomputed:
        log(f"reference: log-probabilities of {len(met) + len(held_out):,} pairs before step one")
        trainer.take_reference([*met, *held_out])
    return trainer


class DpoTrainer(PairTrainer[PairRow]):
    """Pairs under the losses above.

    Args:
        loss: sigmoid, robust or ipo.
        beta: how dear it is to leave the reference.
        label_smoothing: ε, the share of pairs that are taken for judged wrongly.
        sft_weight: weight of the chosen answer's mean −log π per token.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        loss: str = "sigmoid",
        beta: float = 0.1,
        label_smoothing: float = 0.0,
        sft_weight: float = 0.0,
        **parts: Unpack[PairOptions[PairRow]],
    ):
        super().__init__(model, args, **parts)
        self.loss, self.beta, self.label_smoothing, self.sft_weight = loss, beta, label_smoothing, sft_weight
        self.reference: dict[PairRow, tuple[float, ...]] = {}
        """Log-probability of a pair's chosen and its rejected answer under the reference."""

    def take_reference(self, pairs: Sequence[PairRow]) -> None:
        """Measure the reference's log-probabilities of ``pairs`` with the model as it stands."""
        self.reference |= self.reference_logprobs(pairs)

    def pair_losses(self, model: nn.Module, row_batch: RowBatch, pairs: Sequence[PairRow]) -> tuple[Tensor, Measured]:
        """P losses; measured: implicit rewards β·log π/π_ref of either answer, and their log-probabilities."""
        known = self._reference_of(model, row_batch, pairs)  # first: its states are gone before the policy's are kept
        sums = sum_by_row(token_logprobs(model, row_batch), row_batch)
        ratios = sums - known
        tokens = count_by_row(row_batch)
        losses = dpo_loss(ratios[::2], ratios[1::2], tokens, self.loss, self.beta, self.label_smoothing)
        if self.sft_weight:
            losses = losses - self.sft_weight * sums[::2] / tokens[::2].clamp(min=1)
        rewards = self.beta * ratios.detach()
        better, worse = rewards[::2], rewards[1::2]
        return losses, {
            **compared(better, worse),
            "reward_chosen": better,
            "reward_rejected": worse,
            "logprob_chosen": sums[::2].detach(),
            "logprob_rejected": sums[1::2].detach(),
        }

    def _reference_of(self, model: nn.Module, row_batch: RowBatch, pairs: Sequence[PairRow]) -> Tensor:
        """2P log-probabilities of the answers under the reference."""
        if self.reference:
            known = [value for pair in pairs for value in self.reference[pair]]
            return torch.tensor(known, device=row_batch.ends.device)
        was_training = model.training
        model.eval()
        with as_reference(cast(PeftModel, model)):
            sums = sum_by_row(token_logprobs(model, row_batch), row_batch)
        model.train(was_training)
        return sums


def dpo_loss(
    better_P: Tensor, worse_P: Tensor, tokens_2P: Tensor, loss: str, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """P losses from log-ratios π/π_ref of the answers.

    Args:
        tokens_2P: tokens of the answers, each pair's better one first (ipo alone reads them).
    """
    if loss == "ipo":
        a_token = better_P / tokens_2P[::2].clamp(min=1) - worse_P / tokens_2P[1::2].clamp(min=1)
        return (a_token - 1 / (2 * beta)) ** 2
    h = beta * (better_P - worse_P)
    right, wrong = -F.logsigmoid(h), -F.logsigmoid(-h)
    if loss == "robust":
        return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right + label_smoothing * wrong


RUNTIME = Runtime(make_trainer=make_trainer, adapt=adapt)
