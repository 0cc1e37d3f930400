r"""simpo: preferences without a reference (Meng et al. 2024, arXiv 2405.14734, equation 6).

−log σ(r(chosen) − r(rejected) − γ),   r = β · mean log-probability of an answer's tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Unpack

from torch import Tensor, nn
from torch.nn import functional as F
from transformers import TrainingArguments

from fitune.data.token_rows import PairRow
from fitune.methods.context import RunContext
from fitune.methods.runtime import Runtime
from fitune.methods.simpo.config import SimpoSettings
from fitune.methods.trainer_parts import answer_pair_parts
from fitune.ops.token_logprobs import RowBatch, count_by_row, sum_by_row, token_logprobs
from fitune.trainers.preference import Measured, PairOptions, PairTrainer, compared


def make_trainer(run: RunContext, model: nn.Module) -> SimpoTrainer:
    """The trainer with everything that listens to it."""
    own = run.own(SimpoSettings)
    return SimpoTrainer(model, run.arguments, beta=own.beta, gamma=own.gamma, **answer_pair_parts(run, model))


class SimpoTrainer(PairTrainer[PairRow]):
    """Pairs under the loss above.

    Args:
        beta: scale of the rewards.
        gamma: margin between them.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        beta: float,
        gamma: float,
        **parts: Unpack[PairOptions[PairRow]],
    ):
        super().__init__(model, args, **parts)
        self.beta, self.gamma = beta, gamma

    def pair_losses(self, model: nn.Module, row_batch: RowBatch, pairs: Sequence[PairRow]) -> tuple[Tensor, Measured]:
        """P losses; measured: both rewards, and how often the chosen answer has the higher one."""
        sums = sum_by_row(token_logprobs(model, row_batch), row_batch)
        rewards = self.beta * sums / count_by_row(row_batch).clamp(min=1)
        better, worse = rewards.detach()[::2], rewards.detach()[1::2]
        measured = {**compared(better, worse), "reward_chosen": better, "reward_rejected": worse}
        return simpo_loss(rewards[::2], rewards[1::2], self.gamma), measured


def simpo_loss(better_P: Tensor, worse_P: Tensor, gamma: float) -> Tensor:
    """P losses from the answers' rewards."""
    return -F.logsigmoid(better_P - worse_P - gamma)


RUNTIME = Runtime(make_trainer=make_trainer)
