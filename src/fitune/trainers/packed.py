"""`PackedTrainer`: FituneTrainer whose steps are packs instead of padded micro-batches. Same rows a step, same losses.

In: as FituneTrainer, and a `Packing`. Out: likewise.
Knows nothing of how packs are computed (packed.py) or laid (data/packing/bins.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from fitune.data.packing.bins import pack_rows
from fitune.data.packing.tree import Tree
from fitune.ops.packed_loss import pack_loss, to_pack
from fitune.trainers.base import FituneTrainer
from fitune.trainers.packing_support import Packing

PACKS = "packs"


@dataclass(frozen=True)
class PackCollate:
    """The rows of an optimizer step → its packs."""

    max_tokens: int
    share: bool

    def __call__(self, rows: Sequence[Any]) -> dict[str, list[Tree]]:
        return {PACKS: pack_rows(rows, self.max_tokens, self.share)}


class PackedTrainer(FituneTrainer):
    """FituneTrainer over packs.

    The loader hands out the rows of a whole optimizer step, which `training_step` takes pack by pack; transformers
    therefore sees one batch a step, and its step counts stay those of the padded path.
    """

    def __init__(self, *args: Any, packing: Packing, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if packing.mode == "off":
            raise ValueError("PackedTrainer needs a packing other than off; use FituneTrainer")
        self.packing = packing
        # Accelerate holds a number of its own, fixed when the Trainer was made.
        self.args.per_device_train_batch_size *= self.args.gradient_accumulation_steps
        self._train_batch_size = self.args.train_batch_size
        self.args.gradient_accumulation_steps = 1
        self.accelerator.gradient_accumulation_steps = 1

    def get_train_dataloader(self) -> DataLoader:
        padded = self.data_collator
        self.data_collator = PackCollate(self.packing.max_tokens, self.packing.mode == "tree")
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = padded

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The packs of one optimizer step, and how many tokens they train."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        trees = [tree for batch in batches for tree in batch[PACKS]]
        self.step_loss = 0.0
        self.step_tokens = sum(tree.row_tokens for tree in trees)
        return batches, torch.tensor(sum(tree.num_targets for tree in trees), device=device).clamp(min=1)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of every pack of the step; halts when a loss is not finite."""
        model.train()
        total = torch.zeros((), device=self.args.device)
        for tree in inputs[PACKS]:
            self.last_row_numbers = list(tree.row_numbers)
            # Accelerate's own autocast is wrapped around the model's forward, which packs do not go through.
            with self.accelerator.autocast():
                loss = pack_loss(self.model, to_pack(tree, self.args.device), num_items_in_batch)
            if not torch.isfinite(loss):
                self.halt(f"the loss is {loss.item()}")
            self.accelerator.backward(loss)
            total += loss.detach()
        self.step_loss += total.item()
        return total

    def _token_loss(self, eval_dataset: Any) -> float:
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        total, tokens = 0.0, 0
        for tree in pack_rows(dataset.rows, self.packing.max_tokens, self.packing.mode == "tree"):
            with self.accelerator.autocast():
                total += pack_loss(self.model, to_pack(tree, self.args.device), 1).item()
            tokens += tree.num_targets
        return total / max(tokens, 1)
