r"""orpo: preferences without a reference (Hong et al. 2024, arXiv 2403.07691, equations 6 and 7).

    −log p(chosen) − weight · log σ(log odds(chosen) − log odds(rejected)),   odds = p / (1 − p)

In the odds, log p is the mean log-probability of an answer's tokens. The first part is the supervised loss of method sft on
the chosen sides: the mean over the trained tokens of all pairs of the step, not of each pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments

from fitune.data.token_rows import PairRow, TokenRow
from fitune.methods.context import RunContext
from fitune.methods.orpo.config import OrpoSettings
from fitune.methods.runtime import Runtime
from fitune.methods.trainer_parts import answer_pair_parts
from fitune.ops.token_logprobs import RowBatch, make_row_batch, sum_by_row, token_logprobs
from fitune.trainers.oom_recovery import OomRecovery
from fitune.trainers.preference import Measured, PairOptions, PairTrainer, compared, sides

# exp(-LEAST) is the largest mean probability whose odds fp32 holds.
LEAST = torch.finfo(torch.float32).eps


def make_trainer(run: RunContext, model: nn.Module) -> OrpoTrainer:
    """The trainer with everything that listens to it."""
    own = run.own(OrpoSettings)
    return OrpoTrainer(model, run.arguments, weight=own.weight, sft_on=own.sft_on, **answer_pair_parts(run, model))


class OrpoTrainer(PairTrainer[PairRow]):
    """Pairs under the loss above.

    Args:
        weight: of the odds ratio.
        sft_on: tokens of the supervised loss, answer or all.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        weight: float,
        sft_on: str = "answer",
        **parts: Unpack[PairOptions[PairRow]],
    ):
        super().__init__(model, args, **parts)
        self.weight, self.sft_on = weight, sft_on
        self.sft_tokens_a_pair = 1.0

    def survey(self, pairs: Sequence[PairRow], recovery: OomRecovery) -> list[float]:
        """Tokens of each pair's supervised loss."""
        return [row.num_trained for row in self._rows(pairs)[::2]]

    def heed(self, surveyed: Sequence[float]) -> None:
        """Their mean over all pairs that the loss is averaged over."""
        self.sft_tokens_a_pair = max(sum(surveyed), 1) / len(surveyed)

    def _rows(self, pairs: Sequence[PairRow]) -> list[TokenRow]:
        """2P rows; with sft_on all, every token of the better ones is a target."""
        rows = sides(pairs)
        if self.sft_on == "all":
            rows[::2] = [TokenRow(row.input_ids, (True,) * row.num_tokens, row.row_number) for row in rows[::2]]
        return rows

    def _row_batch(self, pairs: Sequence[PairRow]) -> RowBatch:
        return make_row_batch(self._rows(pairs), self.packing.mode, self.args.device)

    def pair_losses(self, model: nn.Module, row_batch: RowBatch, pairs: Sequence[PairRow]) -> tuple[Tensor, Measured]:
        """P losses; measured: the log odds ratio, how often it favours the chosen answer, log-probabilities a token."""
        logps = token_logprobs(model, row_batch)
        supervised = -sum_by_row(logps, row_batch)[::2] / self.sft_tokens_a_pair
        is_answer = answer_mask(self._rows(pairs), sides(pairs)).to(logps.device)
        counts = torch.tensor([row.num_trained for row in sides(pairs)], device=logps.device)
        means = sum_by_row(logps * is_answer, row_batch) / counts.clamp(min=1)
        odds = log_odds(means)
        losses = supervised - self.weight * F.logsigmoid(odds[::2] - odds[1::2])
        here = means.detach()
        return losses, {
            **compared(odds.detach()[::2], odds.detach()[1::2]),
            "sft_loss": supervised.detach(),
            "logprob_chosen": here[::2],
            "logprob_rejected": here[1::2],
        }


def answer_mask(targets: Sequence[TokenRow], answers: Sequence[TokenRow]) -> Tensor:
    """Which of the targets of all rows, end to end, are targets of the answers too.

    Args:
        targets: rows with the targets of a `RowBatch`.
        answers: the same rows with the answers' targets alone.
    """
    kept = [
        on
        for wide, narrow in zip(targets, answers, strict=True)
        for target, on in zip(wide.trained[1:], narrow.trained[1:], strict=True)
        if target
    ]
    return torch.tensor(kept)


def log_odds(logp: Tensor) -> Tensor:
    """log p / (1 − p); a p that fp32 cannot tell from 1 is taken as 1 − LEAST."""
    logp = logp.clamp(max=-LEAST)
    return logp - torch.log(-torch.expm1(logp))


RUNTIME = Runtime(make_trainer=make_trainer)
