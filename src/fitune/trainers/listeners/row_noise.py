"""NEFTune's noise (arXiv 2310.05914) by the length of each row, whatever the rows of a forward pass are laid out as.

transformers' hook takes the length of what is embedded, which is a whole pack or a padded rectangle; here it is called
for each row with the row's own length: alpha / √(length · width).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import neftune

from fitune.data.packing.tree import Tree
from fitune.models.base_model import base_model_of
from fitune.trainers.callbacks import TrainerListener

PlacedRow = tuple[Tensor, int]
"""(places of a row's tokens in the flattened batch, ascending; its length in tokens)"""


class RowNoise(TrainerListener):
    """Adds the noise while training.

    Args:
        alpha: of the paper.
    """

    def __init__(self, alpha: float):
        self.alpha = alpha
        self.rows: list[PlacedRow] = []
        self._embedding: Any = None
        self._hook: Any = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._embedding = base_model_of(self.trainer.model).get_input_embeddings()
        self._embedding.neftune_noise_alpha = self.alpha
        self._hook = self._embedding.register_forward_hook(self._add)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self._hook.remove()
        del self._embedding.neftune_noise_alpha

    def _add(self, module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if not module.training:
            return output
        width = output.shape[-1]
        noise = torch.zeros_like(output).view(-1, width)
        for places, length in self.rows:
            of_row = neftune.neftune_post_forward_hook(module, inputs, output.new_zeros(1, length, width))[0]
            noise[places.to(output.device)] = of_row[: len(places)]
        return output + noise.view_as(output)


def padded_rows(attention_mask_BS: Tensor) -> list[PlacedRow]:
    """Rows of a right-padded batch."""
    width = attention_mask_BS.shape[1]
    lengths = enumerate(attention_mask_BS.sum(1).tolist())
    return [(torch.arange(length) + row * width, length) for row, length in lengths]


def packed_rows(tree: Tree) -> list[PlacedRow]:
    """Rows of a pack in which nothing is shared."""
    return [(torch.from_numpy(path), len(row.input_ids)) for path, row in zip(tree.row_paths, tree.rows, strict=True)]
