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
from functools import partial
from typing import Any, Generic, TypeVar, Unpack, cast

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from fitune.data.packing.dealing import deal
from fitune.data.packing.pair_batching import AnyPair, pair_passes, pair_tokens
from fitune.data.token_rows import PairRow, TokenRow
from fitune.distributed import ranks, together
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

    def survey(self, pairs: Sequence[AnyPair], recovery: OomRecovery) -> list[float]:
        """A number of each pair that `heed` takes the mean of, before the first of their passes; a method may have none."""
        return []

    def heed(self, surveyed: Sequence[float]) -> None:
        """Called with the numbers of all pairs that a mean is taken over, of all ranks."""
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

    def deal(self, rows: Sequence[AnyPair]) -> list[list[int]]:
        share = self.packing.mode == "tree"
        return deal([pair_tokens(pair, share) for pair in rows], ranks.size())

    def rows_size(self, rows: Sequence[AnyPair]) -> tuple[int, int]:
        return sum(pair.num_tokens for pair in rows), len(rows)

    def step_size(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Tokens of a step's pairs, and their number."""
        pairs = [pair for batch in batches for pair in cast("list[AnyPair]", batch[PAIRS])]
        return sum(pair.num_tokens for pair in pairs), len(pairs)

    def forward_backward(self, model: nn.Module, num_items: Tensor | float, inputs: Batch) -> Tensor:
        """The gradients of every pass of the step; halts when a loss is not finite."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        kept: list[Measured] = []
        order: list[AnyPair] = []
        every = cast("list[AnyPair]", inputs[PAIRS])
        if ranks.size() == 1:  # of several each has told its numbers before
            self.heed(self.survey(every, self.recovery))
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
        self._measured = _joined(kept), order
        self.step_metrics = self.summarize(*self._measured)
        return total

    # ---- several ranks

    def take_part(self, model: nn.Module, batches: Sequence[Batch], num_items: Tensor | float) -> object:
        """This rank's pairs; tells its numbers of each, in the order of `Dealt.rows`."""
        own = [pair for batch in batches for pair in cast("list[AnyPair]", batch[PAIRS])]
        self.heed_all(own, self.recovery)
        if not own:
            return None
        super().take_part(model, batches, num_items)
        measured, order = self._measured
        place = {id(pair): at for at, pair in enumerate(order)}
        return {name: values[[place[id(pair)] for pair in own]].tolist() for name, values in measured.items()}

    def read_reports(self, reports: Sequence[Any], parts: Sequence[Sequence[AnyPair]]) -> None:
        """What was measured over the pairs of all ranks."""
        told = [one for one in reports if one is not None]
        device = self.args.device
        joined = {name: torch.tensor([v for one in told for v in one[name]], device=device) for name in told[0]}
        self.step_metrics = self.summarize(joined, [pair for part in parts for pair in part])

    def heed_all(self, own: Sequence[AnyPair], recovery: OomRecovery) -> None:
        """`survey` of this rank's pairs, `heed` with those of all ranks."""
        doing = f"step {self.state.global_step + 1} is surveyed"
        mine = together.everywhere(doing, lambda: recovery.run(lambda pairs: self.survey(pairs, recovery), own))
        self.heed([number for one in together.gather(mine, doing) for number in one])

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

    def reference_logprobs(self, rows: Sequence[Other]) -> dict[Other, tuple[float, ...]]:
        """`answer_logprobs` of the model as it stands, each rank taking its share.

        Passes are laid over all rows at once, the same whenever the run is resumed.
        """
        own, doing = rows[ranks.share(len(rows))], "the reference is measured"

        def measured() -> list[tuple[float, ...]]:
            ask = partial(self.answer_logprobs, recovery=self.eval_recovery)
            found = self.eval_recovery.run(ask, own, where=lambda: f"while {doing}")
            return [found[row] for row in own]

        every = together.gather(together.everywhere(doing, measured), doing)
        return dict(zip(rows, (one for part in every for one in part), strict=True))

    # ---- evaluation

    def measure(self, eval_dataset: RowDataset[Numbered] | None) -> dict[str, float]:
        """Loss and what the method measures over the held-out pairs."""
        dataset = cast("RowDataset[AnyPair]", self.eval_dataset if eval_dataset is None else eval_dataset)
        measured, pairs, losses = self._pass_over_all(dataset.rows)
        return {"loss": losses.mean().item(), **self.summarize(measured, pairs)}

    def pass_over(self, rows: Sequence[AnyPair]) -> tuple[Measured, list[AnyPair], Tensor]:
        """What is measured of any pairs in the model's present mode, those pairs in the order of the numbers, and P
        losses."""
        return self.eval_recovery.run(self._pass_over, rows)

    def _pass_over_all(self, rows: Sequence[AnyPair]) -> tuple[Measured, list[AnyPair], Tensor]:
        """`pass_over`, each rank taking its share of the pairs."""
        if ranks.size() == 1:
            return self.pass_over(rows)
        doing, own = f"held-out rows are measured at step {self.state.global_step}", rows[ranks.share(len(rows))]
        self.heed_all(own, self.eval_recovery)
        mine = together.everywhere(doing, lambda: self.eval_recovery.run(self._numbers_of, own))
        every = [one for one in together.gather(mine, doing) if one]
        names = every[0]
        joined = {
            name: torch.tensor([v for one in every for v in one[name]], device=self.args.device) for name in names
        }
        return joined, list(rows), joined.pop("loss")

    def _numbers_of(self, own: Sequence[AnyPair]) -> dict[str, list[float]]:
        """What is measured of each of this rank's pairs, in their order."""
        if not own:
            return {}
        measured, order, losses = self._pass_over(own)
        place = {id(pair): at for at, pair in enumerate(order)}
        sorted_ = [place[id(pair)] for pair in own]
        return {name: values[sorted_].tolist() for name, values in {**measured, "loss": losses}.items()}

    def _pass_over(self, rows: Sequence[AnyPair]) -> tuple[Measured, list[AnyPair], Tensor]:
        kept: list[Measured] = []
        order: list[AnyPair] = []
        if ranks.size() == 1:
            self.heed(self.survey(rows, self.eval_recovery))
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
