"""`PairTrainer`: FituneTrainer whose steps are pairs; what a pair's loss is, its subclasses say.

In: as FituneTrainer, with `PairRow`s, and a `Packing`. Out: likewise, with what was measured over the pairs of a step.
Knows nothing of settings.

The loader hands out the pairs of a whole optimizer step; they are laid into passes of a bounded size, a pair never torn
apart, so that its prompt is computed once. Losses are means over the pairs of the step, however they are laid out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from fitune.data.packing.pair_batching import AnyPair, pair_passes, pair_tokens
from fitune.data.token_rows import PairRow, TokenRow
from fitune.ops.token_logprobs import RowBatch, make_row_batch, sum_by_row, token_logprobs
from fitune.trainers.base import Batch, FituneTrainer, RowDataset, TrainerOptions
from fitune.trainers.oom_recovery import OomRecovery, PassSize
from fitune.trainers.packing_support import Packing
from fitune.trainers.sampler import Numbered

PAIRS = "pairs"
Measured = dict[str, Tensor]
Other = TypeVar("Other", bound=PairRow | TokenRow)


def keep_pairs(rows: Sequence[AnyPair]) -> dict[str, list[AnyPair]]:
    """The collator: pairs as they are."""
    return {PAIRS: list(rows)}


def for_pairs(packing: Packing, pairs: Sequence[PairRow | TokenRow], micro_batch_pairs: int) -> Packing:
    """The layout with a limit that as many of the longest pairs fit into as a micro-batch has."""
    longest = max((pair_tokens(pair, packing.mode == "tree") for pair in pairs), default=1)
    return replace(packing, max_tokens=micro_batch_pairs * longest)


def sides(pairs: Sequence[PairRow | TokenRow]) -> list[TokenRow]:
    """2P rows: each pair's better row, then its worse one."""
    return [row for pair in pairs for row in pair.rows]


def compared(better_P: Tensor, worse_P: Tensor) -> Measured:
    """How often the chosen answer has the higher number (ties count half), and by how much."""
    accuracy = (better_P > worse_P).float() + 0.5 * (better_P == worse_P).float()
    return {"accuracy": accuracy, "margin": better_P - worse_P}


class PairOptions(TrainerOptions, Generic[AnyPair]):
    """What every `PairTrainer` is given, as its constructor says."""

    train_rows: Sequence[AnyPair]
    eval_rows: Sequence[AnyPair]
    packing: Packing


class PairTrainer(FituneTrainer, Generic[AnyPair]):
    """FituneTrainer over pairs.

    Args:
        packing: how rows are laid out; with "off" they are padded.
    """

    part = "pair"
    """What a pass is never smaller than, for messages."""

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        *,
        train_rows: Sequence[AnyPair],
        eval_rows: Sequence[AnyPair],
        packing: Packing,
        **options: Unpack[TrainerOptions],
    ):
        at_once = args.per_device_train_batch_size
        self.packing = for_pairs(packing, train_rows, at_once)
        size = PassSize(at_once, self.part)
        if packing.mode != "off":
            size = PassSize(self.packing.max_tokens, self.part, in_tokens=True)
        super().__init__(model, args, train_rows, eval_rows, keep_pairs, pass_size=size, **options)
        self.take_whole_steps()
        self.micro_rows = None

    @abstractmethod
    def pair_losses(self, model: nn.Module, row_batch: RowBatch, pairs: Sequence[AnyPair]) -> tuple[Tensor, Measured]:
        """P losses in fp32, and what else is measured (P numbers a name), of the 2P rows that `sides` gives."""

    def before_passes(self, pairs: Sequence[AnyPair], recovery: OomRecovery) -> None:
        """Called with all pairs that a mean is taken over, before the first of their passes."""
        return

    def summarize(self, measured: Measured, pairs: Sequence[AnyPair]) -> dict[str, float]:
        """Numbers over many pairs; their means unless a method knows better."""
        return {name: values.mean().item() for name, values in measured.items()}

    @property
    def layout(self) -> str:
        """tree, rows or off: how the rows of a step are laid out."""
        return self.packing.mode

    # ---- the step

    @property
    def train_collator(self) -> Callable[[Sequence[AnyPair]], Batch]:
        return keep_pairs

    def step_size(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Tokens of a step's pairs, and their number."""
        pairs = [pair for batch in batches for pair in cast("list[AnyPair]", batch[PAIRS])]
        return sum(pair.num_tokens for pair in pairs), len(pairs)

    def forward_backward(self, model: nn.Module, num_items: Tensor | int, inputs: Batch) -> Tensor:
        """The gradients of every pass of the step; halts when a loss is not finite."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        kept: list[Measured] = []
        order: list[AnyPair] = []
        every = cast("list[AnyPair]", inputs[PAIRS])
        self.before_passes(every, self.recovery)
        for pairs in self.passes(every, self.recovery):
            self.last_row_numbers = [pair.row_number for pair in pairs]
            with self.accelerator.autocast():
                losses, measured = self.pair_losses(self.model, self._row_batch(pairs), pairs)
            loss = losses.sum() / num_items
            if not torch.isfinite(loss):
                self.halt(f"the loss is {loss.item()}")
            self.accelerator.backward(loss)
            total += loss.detach()
            kept.append({name: values.detach() for name, values in measured.items()})
            order += pairs
        self.step_loss += total.item()
        self.step_metrics = self.summarize(_joined(kept), order)
        return total

    def passes(self, pairs: Sequence[Other], recovery: OomRecovery) -> Iterator[list[Other]]:
        """The pairs in forward passes of the size that memory allows."""
        if self.packing.mode == "off":
            for here in recovery.slices(len(pairs)):
                one = list(pairs[here])
                rows = sides(one)
                recovery.begin_pass(len(one), len(rows) * max(row.num_tokens for row in rows))
                yield one
            return
        share = self.packing.mode == "tree"
        for one in pair_passes(pairs, recovery.size.most, share):
            recovery.begin_pass(len(one), sum(pair_tokens(pair, share) for pair in one))
            yield one

    def _row_batch(self, pairs: Sequence[AnyPair]) -> RowBatch:
        return make_row_batch(sides(pairs), self.packing.mode, self.args.device)

    def answer_logprobs(self, pairs: Sequence[Other], recovery: OomRecovery) -> dict[Other, tuple[float, ...]]:
        """Log-probability of each answer of each pair, without gradients or dropout."""
        model = self.model
        was_training = model.training
        model.eval()
        found: dict[Other, tuple[float, ...]] = {}
        with torch.no_grad():
            for passed in self.passes(pairs, recovery):
                with self.accelerator.autocast():
                    row_batch = make_row_batch(sides(passed), self.packing.mode, self.args.device)
                    sums = iter(sum_by_row(token_logprobs(self.model, row_batch), row_batch).tolist())
                found |= {pair: tuple(next(sums) for _ in pair.rows) for pair in passed}
        model.train(was_training)
        return found

    # ---- evaluation

    def measure(self, eval_dataset: RowDataset[Numbered] | None) -> dict[str, float]:
        """Loss and what the method measures over the held-out pairs."""
        dataset = cast("RowDataset[AnyPair]", self.eval_dataset if eval_dataset is None else eval_dataset)
        measured, pairs, losses = self.pass_over(dataset.rows)
        return {"loss": losses.mean().item(), **self.summarize(measured, pairs)}

    def pass_over(self, rows: Sequence[AnyPair]) -> tuple[Measured, list[AnyPair], Tensor]:
        """What is measured of any pairs in the model's present mode, those pairs in the order of the numbers, and P
        losses."""
        return self.eval_recovery.run(self._pass_over, rows)

    def _pass_over(self, rows: Sequence[AnyPair]) -> tuple[Measured, list[AnyPair], Tensor]:
        kept: list[Measured] = []
        order: list[AnyPair] = []
        self.before_passes(rows, self.eval_recovery)
        for pairs in self.passes(rows, self.eval_recovery):
            with self.accelerator.autocast():
                losses, measured = self.pair_losses(self.model, self._row_batch(pairs), pairs)
            kept.append({"loss": losses, **measured})
            order += pairs
        joined = _joined(kept)
        return joined, order, joined.pop("loss")


def _joined(kept: Sequence[Measured]) -> Measured:
    """Values of many passes end to end."""
    return {name: torch.cat([one[name] for one in kept]) for name in kept[0]}
