r"""reward: a scalar that is higher for the better answer of a pair.

The model is the base with a LoRA adapter and a scalar head on the hidden state of the answer's last token (its end
token). The loss is Bradley and Terry's (1952) as Stiennon et al. 2020 use it (arXiv 2009.01325, section 3.4):

    −log σ(r_chosen − r_rejected)  [ + center · (r_chosen + r_rejected)² ]

the second part after Eisenstein et al. 2023 (arXiv 2312.09244, equation 2): rewards of different prompts stay around 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Unpack, cast

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, TrainingArguments

from fitune.adapters.adapter_folder import base_facts, save_adapter
from fitune.console import warn
from fitune.data.token_rows import PairRow
from fitune.methods.adapt import adapt as adapt_plainly
from fitune.methods.context import RunContext
from fitune.methods.reward.config import RewardSettings
from fitune.methods.runtime import Runtime
from fitune.methods.trainer_parts import largest_rows_of, lay_out, listeners, note_step_down
from fitune.models.heads import HEAD_FILE, head_of, head_tensors, put_head, read_head
from fitune.ops.token_logprobs import RowBatch, end_states
from fitune.trainers.base import RowDataset
from fitune.trainers.preference import Measured, PairOptions, PairTrainer, sides

# Above this correlation of reward and length (Pearson, over the answers of held-out pairs) length is likely what counts.
LENGTH_WARNING = 0.6
# Pairs from which the scale of the rewards is taken.
SCALE_PAIRS = 256


def adapt(run: RunContext) -> PreTrainedModel | PeftModel:
    """The base with a LoRA adapter and a head: a fresh one, or that of the reward model that is trained further."""
    model = adapt_plainly(run)
    head = put_head(model)
    if run.start is not None and (run.start / HEAD_FILE).exists():
        head.load_state_dict(read_head(run.start, len(head.weight)).state_dict())
    return model


def make_trainer(run: RunContext, model: nn.Module) -> RewardTrainer:
    """The trainer with everything that listens to it."""
    longest = max(row.num_tokens for row in sides([*run.data.train, *run.data.eval]))
    packing = lay_out(run, model, sides(run.data.train), longest)
    return RewardTrainer(
        model,
        run.arguments,
        train_rows=run.data.train,
        eval_rows=run.data.eval,
        packing=packing,
        center=run.own(RewardSettings).center,
        keep_checkpoints=run.keep_checkpoints,
        callbacks=listeners(run),
        on_step_down=note_step_down(run),
        largest_rows=largest_rows_of(run, run.data.train, packing.mode),
    )


class RewardTrainer(PairTrainer[PairRow]):
    """Pairs under Bradley and Terry's loss.

    Args:
        center: weight of the squared sum of a pair's rewards.
    """

    def __init__(
        self, model: nn.Module, args: TrainingArguments, *, center: float = 0.0, **parts: Unpack[PairOptions[PairRow]]
    ):
        super().__init__(model, args, **parts)
        self.center = center

    def pair_losses(self, model: nn.Module, row_batch: RowBatch, pairs: Sequence[PairRow]) -> tuple[Tensor, Measured]:
        """P losses; measured: the reward of either answer."""
        rewards = head_of(model)(end_states(model, row_batch))
        better, worse = rewards[::2], rewards[1::2]
        return preference_loss(better, worse, self.center), {"chosen": better, "rejected": worse}

    def summarize(self, measured: Measured, pairs: Sequence[PairRow]) -> dict[str, float]:
        return preference_metrics(measured["chosen"], measured["rejected"], pairs)


def preference_loss(better_P: Tensor, worse_P: Tensor, center: float = 0.0) -> Tensor:
    """−log σ(r_chosen − r_rejected), P numbers; ties lose log 2."""
    losses = -F.logsigmoid(better_P - worse_P)
    return losses + center * (better_P + worse_P) ** 2 if center else losses


def preference_metrics(better_P: Tensor, worse_P: Tensor, pairs: Sequence[PairRow]) -> dict[str, float]:
    """What is worth knowing of P rewarded pairs.

    Returns:
        accuracy (ties count half), margin (mean difference), reward_chosen, reward_rejected, length_correlation
        (Pearson's r of reward and answer length over all 2P answers; 0 where either does not vary).
    """
    difference = better_P - worse_P
    rewards = torch.cat([better_P, worse_P]).float()
    lengths = torch.tensor(
        [float(pair.chosen.num_trained) for pair in pairs] + [float(pair.rejected.num_trained) for pair in pairs],
        device=rewards.device,
    )
    return {
        "accuracy": ((difference > 0).float() + 0.5 * (difference == 0).float()).mean().item(),
        "margin": difference.mean().item(),
        "reward_chosen": better_P.mean().item(),
        "reward_rejected": worse_P.mean().item(),
        "length_correlation": correlation(rewards, lengths),
    }


def correlation(one: Tensor, other: Tensor) -> float:
    """Pearson's r; 0 where either does not vary."""
    a, b = one - one.mean(), other - other.mean()
    norm = (a.norm() * b.norm()).item()
    return (a @ b).item() / norm if norm > 0 else 0.0


def save(run: RunContext, trainer: RewardTrainer, model: nn.Module) -> Path:
    """The adapter, with the head beside it, and in fitune.json the scale of the rewards over the held-out pairs."""
    dataset = cast("RowDataset[PairRow]", trainer.eval_dataset or trainer.train_dataset)
    rows = dataset.rows[:SCALE_PAIRS]
    was_training = model.training
    model.eval()
    with torch.no_grad():
        measured, pairs, _ = trainer.pass_over(rows)
    model.train(was_training)
    follows = trainer.summarize(measured, pairs)["length_correlation"]
    if abs(follows) > LENGTH_WARNING:
        warn(
            f"rewards follow the length of the answers (correlation {follows:.2f} over {2 * len(pairs):,} of them): this "
            "model may reward length alone; balance the pairs, or compare answers of equal length"
        )
    every = torch.cat([measured["chosen"], measured["rejected"]])
    scale = {
        "mean": every.mean().item(),
        "std": every.std().item(),
        "answers": len(every),
        "length_correlation": follows,
    }
    base, folder = run.base, run.folder.adapter
    facts = base_facts(base)
    facts["reward"] = scale
    head = {HEAD_FILE: head_tensors(head_of(model))}
    save_adapter(cast(PeftModel, model), base.tokenizer, base.template, folder, facts, beside=head)
    return folder


RUNTIME = Runtime(make_trainer=make_trainer, adapt=adapt, save=save)
