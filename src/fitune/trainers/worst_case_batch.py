"""The largest forward passes that a run will meet: its order of rows is known, so they need not be guessed.

In: token rows, the batch, the seed. Out: the rows of the largest pass, and `LargestPass` for the plan.
Knows nothing of models, settings or trainers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np

from fitune.data.packing.bins import pack_rows
from fitune.data.packing.largest_pass import LargestPass
from fitune.data.packing.pair_batching import pair_passes, pair_tokens
from fitune.data.packing.tree import Row, Tree
from fitune.data.token_rows import PairRow, TokenRow
from fitune.trainers.sampler import epoch_order, rows_together

if TYPE_CHECKING:
    from typing_extensions import TypeIs

AnyRow = TypeVar("AnyRow", bound=TokenRow | PairRow)

# Steps are weighed by their rows' lengths, and the heaviest of them packed to see what is shared.
STEPS_PACKED = 16
EPOCHS_LOOKED_AT = 20


@dataclass(frozen=True)
class Batches:
    """How rows are dealt out."""

    batch_rows: int
    """Rows of an optimizer step."""
    micro_rows: int
    """Rows of a padded forward pass."""
    seed: int
    epochs: float = 1.0
    mode: str = "off"
    """tree, rows or off, as `Packing.mode`."""

    def max_tokens(self, rows: Sequence[TokenRow]) -> int:
        """Computed tokens of a pack at most (packing.choose_packing)."""
        return self.micro_rows * max((len(row.input_ids) for row in rows), default=1)


def heaviest_steps(
    rows: Sequence[AnyRow], batches: Batches, count: int, weights: np.ndarray | None = None
) -> list[list[AnyRow]]:
    """The rows of the ``count`` optimizer steps with the most tokens, heaviest first.

    Args:
        weights: tokens of each row; None takes its length.
    """
    lengths = np.asarray([_width(row) for row in rows]) if weights is None else weights
    found: list[tuple[int, np.ndarray]] = []
    for order in _orders(rows, batches):
        starts = range(0, len(order), batches.batch_rows)
        tokens = np.add.reduceat(lengths[order], np.asarray(starts))
        for step in np.argsort(-tokens, kind="stable")[:count].tolist():
            found.append((int(tokens[step]), order[starts[step] : starts[step] + batches.batch_rows]))
    found.sort(key=lambda one: -one[0])
    return [[rows[index] for index in step] for _, step in found[:count]]


def are_pairs(rows: Sequence[TokenRow] | Sequence[PairRow]) -> TypeIs[Sequence[PairRow]]:
    """Whether rows are pairs; the first one tells."""
    return isinstance(rows[0], PairRow)


def largest_rows(
    rows: Sequence[TokenRow] | Sequence[PairRow], batches: Batches
) -> list[TokenRow | PairRow] | list[PairRow] | list[Row]:
    """The rows, or pairs, of the largest forward pass, however they are laid out."""
    if batches.mode == "off":
        return largest_micro_batch(rows, batches)
    if are_pairs(rows):
        return largest_pair_pass(rows, batches)
    return list(largest_pack(rows, batches).rows)


def largest_micro_batch(rows: Sequence[AnyRow], batches: Batches) -> list[AnyRow]:
    """The padded forward pass with the most positions; of several, the one with the most trained tokens."""
    lengths = np.asarray([_width(row) for row in rows])
    trained = np.asarray([row.num_trained for row in rows])
    best, chosen = (-1, -1), np.empty(0, dtype=np.int64)
    for order in _orders(rows, batches):
        # The micro-batch divides the batch, so that no micro-batch reaches over the end of a step.
        starts = np.arange(0, len(order), batches.micro_rows)
        counts = np.diff(np.append(starts, len(order)))
        positions = np.maximum.reduceat(lengths[order], starts) * counts
        targets = np.add.reduceat(trained[order], starts)
        at = max(range(len(starts)), key=lambda index: (positions[index], targets[index]))
        here = (int(positions[at]), int(targets[at]))
        if here > best:
            best, chosen = here, order[starts[at] : starts[at] + batches.micro_rows]
    return [rows[index] for index in chosen.tolist()]


def _width(row: TokenRow | PairRow) -> int:
    """Tokens of a row, or of the longer row of a pair."""
    return max(side.num_tokens for side in row.rows) if isinstance(row, PairRow) else row.num_tokens


def _orders(rows: Sequence[TokenRow | PairRow], batches: Batches) -> Iterator[np.ndarray]:
    """The order of each epoch."""
    together = rows_together(rows)
    for epoch in range(min(max(int(np.ceil(batches.epochs)), 1), EPOCHS_LOOKED_AT)):
        yield np.asarray(epoch_order(together, batches.seed, epoch))


def largest_pack(rows: Sequence[TokenRow], batches: Batches) -> Tree:
    """The pack with the most computed tokens among the heaviest steps."""
    most, share = batches.max_tokens(rows), batches.mode == "tree"
    packs = [pack for step in heaviest_steps(rows, batches, STEPS_PACKED) for pack in pack_rows(step, most, share)]
    return max(packs, key=lambda pack: (pack.num_nodes, pack.num_targets))


def largest_pair_pass(pairs: Sequence[PairRow], batches: Batches) -> list[PairRow]:
    """The packed forward pass of pairs with the most computed tokens among the heaviest steps."""
    share = batches.mode == "tree"
    weights = [pair_tokens(pair, share) for pair in pairs]
    steps = heaviest_steps(pairs, batches, STEPS_PACKED, np.asarray(weights))
    passes = [one for step in steps for one in pair_passes(step, batches.micro_rows * max(weights), share)]
    return max(passes, key=lambda one: sum(pair_tokens(pair, share) for pair in one))


def largest_pass(
    train_rows: Sequence[TokenRow] | Sequence[PairRow],
    eval_rows: Sequence[TokenRow] | Sequence[PairRow],
    batches: Batches,
    prompt_tokens: int | None = None,
) -> LargestPass:
    """What the rows say about the memory of this run."""
    if are_pairs(train_rows):
        held_out = cast("Sequence[PairRow]", eval_rows)
        return _largest_pass_of_pairs(train_rows, held_out, batches, prompt_tokens)
    return _largest_pass_of_rows(train_rows, cast("Sequence[TokenRow]", eval_rows), batches, prompt_tokens)


def _largest_pass_of_rows(
    train_rows: Sequence[TokenRow], eval_rows: Sequence[TokenRow], batches: Batches, prompt_tokens: int | None
) -> LargestPass:
    longest = max(row.num_tokens for row in train_rows)
    if batches.mode == "off":
        micro = largest_micro_batch(train_rows, batches)
        width = max(row.num_tokens for row in micro)
        targets = sum(row.num_trained for row in micro)
        return LargestPass(
            longest_tokens=width, label_share=_share(targets, len(micro) * (width - 1)), prompt_tokens=prompt_tokens
        )
    pack = largest_pack(train_rows, batches)
    predicting = len(np.unique(pack.target_nodes))
    held_out = pack_rows(eval_rows, batches.max_tokens(train_rows), batches.mode == "tree") if eval_rows else []
    eval_pack = max((tree.num_nodes for tree in held_out), default=None)
    share = _share(predicting, pack.num_nodes - 1)
    return LargestPass(
        longest_tokens=longest,
        label_share=share,
        pack_tokens=pack.num_nodes,
        eval_pack_tokens=eval_pack,
        prompt_tokens=prompt_tokens,
    )


def _largest_pass_of_pairs(
    train: Sequence[PairRow], eval_pairs: Sequence[PairRow], batches: Batches, prompt_tokens: int | None
) -> LargestPass:
    """The same of pairs: padded, both sides are rows of a pass; packed, what they share is counted once."""
    longest = max(side.num_tokens for pair in train for side in pair.rows)
    if batches.mode == "off":
        rows = sorted((side.num_trained for pair in train for side in pair.rows), reverse=True)[
            : 2 * batches.micro_rows
        ]
        return LargestPass(
            longest_tokens=longest,
            label_share=_share(sum(rows), len(rows) * (longest - 1)),
            prompt_tokens=prompt_tokens,
        )
    share = batches.mode == "tree"
    most = batches.micro_rows * max(pair_tokens(pair, share) for pair in train)

    def size(pairs: Sequence[PairRow]) -> int:
        return sum(pair_tokens(pair, share) for pair in pairs)

    largest = largest_pair_pass(train, batches)
    held_out = max((size(one) for one in pair_passes(eval_pairs, most, share)), default=None)
    trained = sum(pair.num_trained for pair in largest)
    return LargestPass(
        longest_tokens=longest,
        label_share=_share(trained, size(largest) - 1),
        pack_tokens=size(largest),
        eval_pack_tokens=held_out,
        prompt_tokens=prompt_tokens,
    )


def _share(part: int, whole: int) -> float:
    return min(1.0, max(part, 1) / max(whole, 1))
