"""`PackedTrainer`: FituneTrainer whose steps are packs instead of padded micro-batches. Same rows a step, same losses.

In: as FituneTrainer, and a `Packing`. Out: likewise.
Knows nothing of how packs are computed (ops/packed_loss.py) or laid (data/packing/bins.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Unpack, cast

import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from fitune.data.packing.bins import pack_rows
from fitune.data.packing.dealing import deal_rows
from fitune.data.packing.tree import Row, Tree
from fitune.data.token_rows import TokenRow
from fitune.distributed import ranks
from fitune.ops.packed_loss import pack_loss, to_pack
from fitune.trainers.base import Batch, Collate, FituneTrainer, RowDataset, TrainerOptions
from fitune.trainers.listeners.row_noise import packed_rows
from fitune.trainers.oom_recovery import PassSize
from fitune.trainers.packing_support import Packing
from fitune.trainers.sampler import Numbered

PACKS = "packs"


@dataclass(frozen=True)
class PackCollate:
    """The rows of an optimizer step → its packs."""

    max_tokens: int
    share: bool

    def __call__(self, rows: Sequence[Row]) -> dict[str, list[Tree]]:
        return {PACKS: pack_rows(rows, self.max_tokens, self.share)}


class PackedTrainer(FituneTrainer):
    """FituneTrainer over packs.

    The loader hands out the rows of a whole optimizer step, which `training_step` takes pack by pack; transformers
    therefore sees one batch a step, and its step counts stay those of the padded path.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_rows: Sequence[TokenRow],
        eval_rows: Sequence[TokenRow],
        collate: Collate[TokenRow],
        *,
        packing: Packing,
        **options: Unpack[TrainerOptions],
    ):
        size = PassSize(packing.max_tokens, in_tokens=True)
        super().__init__(model, args, train_rows, eval_rows, collate, pass_size=size, **options)
        if packing.mode == "off":
            raise ValueError("PackedTrainer needs a packing other than off; use FituneTrainer")
        self.packing = packing
        self.take_whole_steps()
        self.micro_rows = None

    @property
    def layout(self) -> str:
        return self.packing.mode

    @property
    def train_collator(self) -> Callable[[Sequence[Row]], Batch]:
        return PackCollate(self.packing.max_tokens, self.packing.mode == "tree")

    def deal(self, rows: Sequence[TokenRow]) -> list[list[int]]:
        return deal_rows(rows, ranks.size(), self.packing.mode)

    def single_passes(self, batch: Batch) -> list[Batch]:
        return [{PACKS: [tree]} for tree in self._smaller(cast("list[Tree]", batch[PACKS]))]

    def step_size(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Tokens of a step's rows, and how many of them are trained."""
        trees = [tree for batch in batches for tree in cast("list[Tree]", batch[PACKS])]
        return sum(tree.row_tokens for tree in trees), sum(tree.num_targets for tree in trees)

    def forward_backward(self, model: nn.Module, num_items: Tensor | float, inputs: Batch) -> Tensor:
        """The gradients of every pack of the step; halts when a loss is not finite."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for tree in self._smaller(cast("list[Tree]", inputs[PACKS])):
            self.recovery.begin_pass(len(tree.row_numbers), tree.num_nodes)
            self.last_row_numbers = list(tree.row_numbers)
            if self.noise is not None:
                self.noise.rows = packed_rows(tree)
            # Accelerate's own autocast is wrapped around the model's forward, which packs do not go through.
            with self.accelerator.autocast():
                loss = pack_loss(self.model, to_pack(tree, self.args.device), num_items)
            if not torch.isfinite(loss):
                self.halt(f"the loss is {loss.item()}")
            self.accelerator.backward(loss)
            total += loss.detach()
        self.step_loss += total.item()
        return total

    def _smaller(self, packs: Sequence[Tree]) -> Iterator[Tree]:
        """The packs that the loader made, those that have become too large packed anew."""
        most = self.recovery.size.most
        for tree in packs:
            if tree.num_nodes <= most or len(tree.rows) == 1:
                yield tree
            else:
                yield from pack_rows(tree.rows, most, self.packing.mode == "tree")

    def _token_loss(self, eval_dataset: RowDataset[Numbered] | None) -> tuple[float, int]:
        rows = cast("Sequence[TokenRow]", self.own_eval_rows(eval_dataset))
        total, tokens = 0.0, 0
        for tree in pack_rows(rows, self.eval_recovery.size.most, self.packing.mode == "tree"):
            self.eval_recovery.begin_pass(len(tree.row_numbers), tree.num_nodes)
            with self.accelerator.autocast():
                total += pack_loss(self.model, to_pack(tree, self.args.device), 1).item()
            tokens += tree.num_targets
        return total, tokens
