"""Rows laid out for one forward pass, and what methods that look at single rows read from it.

In: token rows, a layout (a tree pack where the model allows it, else a padded rectangle). Out: for each trained token of
each row its log-probability; for each row the hidden state at its last token. The same numbers in either layout.
Knows nothing of losses, trainers or settings.

Rows that share a prefix (a pair's prompt, the answers of a group) have it computed once in a pack, and a token that
several rows predict from the same place meets the head once.

R rows, T trained tokens of all rows together (in the order of the rows), P places they are predicted from, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fitune.data.packing.bins import Mode
from fitune.data.packing.padding import pad_collate
from fitune.data.packing.tree import Row, build_tree, predicting_places
from fitune.errors import ModelError
from fitune.ops.chunked_cross_entropy import CPU_CHUNK_LOGITS, GPU_CHUNK_LOGITS, Head, transformed
from fitune.ops.packed_loss import split_model
from fitune.ops.tree_attention import no_mask
from fitune.ops.tree_attention_layout import TreeLayout, make_layout

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class RowBatch:
    """Rows as one forward pass sees them. Places are numbers in the flattened states of the pass."""

    inputs: dict[str, Tensor | TreeLayout]
    """What the model's body is called with."""
    places: Tensor
    """P places from which something is predicted, each (place, token) once."""
    tokens: Tensor
    """P token ids predicted there."""
    entry_of: Tensor
    """T: which of the P a trained token is."""
    row_of: Tensor
    """T: the row a trained token belongs to, ascending."""
    ends: Tensor
    """R places of the rows' last tokens."""
    computed_tokens: int
    """Tokens that the pass computes, padding included."""

    @property
    def num_rows(self) -> int:
        return len(self.ends)


def make_row_batch(rows: Sequence[Row], mode: Mode, device: torch.device | str = "cpu") -> RowBatch:
    """Lay rows out.

    Args:
        rows: at least one, none empty; their ``trained`` tells which tokens' log-probabilities are wanted.
        mode: of a `fitune.trainers.packing_support.Packing`: tree, rows (packs without sharing), or off (padded).
    """
    if mode == "off":
        batch = pad_collate(rows, pad_id=0)  # type: ignore[arg-type]
        width = batch["input_ids"].shape[1]
        paths = [np.arange(len(row.input_ids)) + index * width for index, row in enumerate(rows)]
        inputs: dict[str, Tensor | TreeLayout] = {
            name: batch[name].to(device) for name in ("input_ids", "attention_mask")
        }
        computed = len(rows) * width
    else:
        tree = build_tree(rows, share=mode == "tree", keep_ends=True)
        paths, computed = list(tree.row_paths), tree.num_nodes
        layout = make_layout(tree.paths, tree.owned, tree.positions, tree.ends, device)
        inputs = {
            "input_ids": torch.from_numpy(tree.input_ids).to(device)[None],
            "position_ids": layout.positions[None],
            "attention_mask": no_mask(device),
            "tree_layout": layout,
        }
    places: list[np.ndarray] = []
    tokens: list[np.ndarray] = []
    row_of: list[np.ndarray] = []
    for index, (row, path) in enumerate(zip(rows, paths, strict=True)):
        at = predicting_places(row)
        places.append(path[at])
        tokens.append(np.asarray(row.input_ids)[at + 1])
        row_of.append(np.full(len(at), index))
    pairs = np.stack([np.concatenate(places), np.concatenate(tokens)]).astype(np.int64)
    entries, entry_of = np.unique(pairs, axis=1, return_inverse=True)

    def there(values: ArrayLike) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values), dtype=torch.long).to(device)

    return RowBatch(
        inputs=inputs,
        places=there(entries[0]),
        tokens=there(entries[1]),
        entry_of=there(entry_of.reshape(-1)),
        row_of=there(np.concatenate(row_of)),
        ends=there([path[-1] for path in paths]),
        computed_tokens=computed,
    )


def states_of(model: nn.Module, row_batch: RowBatch) -> Tensor:
    """Hidden states behind the last norm, one a place: (places, H)."""
    body, _ = split_model(model)
    states = body(**row_batch.inputs, use_cache=False).last_hidden_state
    return states.reshape(-1, states.shape[-1])


def end_states(model: nn.Module, row_batch: RowBatch) -> Tensor:
    """R×H hidden states at the rows' last tokens."""
    return states_of(model, row_batch).index_select(0, row_batch.ends)


def token_logprobs(model: nn.Module, row_batch: RowBatch) -> Tensor:
    """T log-probabilities in fp32, with gradient where it is enabled.

    Logits exist for a few hundred places at a time and are made again in the backward pass.
    """
    return entry_logprobs(states_of(model, row_batch), split_model(model)[1], row_batch)


def entry_logprobs(states: Tensor, head: Head, row_batch: RowBatch, temperature: float = 1.0) -> Tensor:
    """`token_logprobs` from states that are there already.

    Args:
        temperature: logits are divided by it, for tokens that were sampled so.
    """
    # On meta the plan asks what a GPU would do.
    limit = CPU_CHUNK_LOGITS if states.device.type == "cpu" else GPU_CHUNK_LOGITS
    size = max(1, limit // head.vocabulary)

    def chunk(part: Tensor, tokens: Tensor) -> Tensor:
        logits = transformed(head.module(part), head) / temperature
        return torch.log_softmax(logits, -1).gather(-1, tokens[:, None])[:, 0]

    found: list[Tensor] = []
    for start in range(0, len(row_batch.places), size):
        here = slice(start, start + size)
        part = states.index_select(0, row_batch.places[here])
        if torch.is_grad_enabled():
            found.append(checkpoint(chunk, part, row_batch.tokens[here], use_reentrant=False))
        else:
            found.append(chunk(part, row_batch.tokens[here]))
    every = torch.cat(found) if found else states.new_zeros(0, dtype=torch.float32)
    return every.index_select(0, row_batch.entry_of)


def sum_by_row(values: Tensor, row_batch: RowBatch) -> Tensor:
    """R sums of T values over the tokens of each row."""
    return values.new_zeros(row_batch.num_rows).index_add(0, row_batch.row_of, values)


def count_by_row(row_batch: RowBatch) -> Tensor:
    """R numbers of trained tokens."""
    return torch.bincount(row_batch.row_of, minlength=row_batch.num_rows)


@torch.no_grad()
def check_row_batch(model: nn.Module, rows: Sequence[Row], mode: Mode) -> None:
    """Compare a padded row's log-probabilities with the model's own logits; packs have had their own check.

    Raises:
        ModelError: this model does more between its body and its logits than its config tells.
    """
    if mode != "off":
        return
    row = min((row for row in rows if any(row.trained[1:])), key=lambda row: len(row.input_ids))
    was_training = model.training
    model.eval()
    row_batch = make_row_batch([row], "off", next(model.parameters()).device)
    ours = token_logprobs(model, row_batch)
    own = torch.log_softmax(model(**row_batch.inputs, use_cache=False).logits[0].float(), -1)[
        row_batch.places, row_batch.tokens
    ]
    model.train(was_training)
    if not torch.allclose(ours, own[row_batch.entry_of], rtol=0.02, atol=0.02):
        raise ModelError(
            f"{type(model).__name__} does more between its last hidden state and its logits than fitune knows, so "
            "log-probabilities of answers cannot be computed; this method does not work with it"
        )
