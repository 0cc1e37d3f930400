"""A pack of rows for a trace: laid out with real numbers on the CPU, then handed to the meta device.

In: lengths of rows. Out: `fitune.ops.packed_loss.Pack` whose tensors hold no values, except the few that the chunked loss
reads. Imports torch and fitune's own rooms: only where fitune trains, never in an environment of another tool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from fitune.ops.packed_loss import Pack
    from fitune.ops.tree_attention_layout import TreeLayout


@dataclass(frozen=True)
class PlannedRow:
    """A row of which only the length counts: no token is shared with another row."""

    input_ids: Sequence[int]
    trained: tuple[bool, ...]
    row_number: int = 0


def rows_of(pack_tokens: int, row_tokens: int | None, label_share: float) -> list[PlannedRow]:
    """Rows of ``row_tokens`` tokens that fill ``pack_tokens``; the last may be shorter. None is one row."""
    longest = min(row_tokens or pack_tokens, pack_tokens)
    lengths = [longest] * (pack_tokens // longest) + [pack_tokens % longest] * bool(pack_tokens % longest)
    rows: list[PlannedRow] = []
    start = 0
    for length in lengths:
        trained = max(round(label_share * (length - 1)), 1)
        # answers stand at the end of a row
        flags = (False,) * (length - min(trained, length)) + (True,) * min(trained, length)
        rows.append(PlannedRow(range(start, start + length), flags))
        start += length
    return rows


def real_pack(rows: Sequence[PlannedRow], model: PreTrainedModel, device: str) -> Pack:
    """The pack of ``rows`` on ``device``; ``model`` takes packs from here on."""
    from fitune.data.packing.tree import build_tree
    from fitune.ops.packed_loss import to_pack
    from fitune.ops.tree_attention import use_tree_attention

    use_tree_attention(model)
    vocabulary = model.config.get_text_config().vocab_size
    return to_pack(build_tree([_with_ids(row, vocabulary) for row in rows], share=False, keep_ends=True), device)


def meta_pack(
    rows: Sequence[PlannedRow], config: PretrainedConfig | None = None, dtype: torch.dtype = torch.bfloat16
) -> Pack:
    """The pack of ``rows`` on meta.

    Args:
        config: given, masks and indices are made as the attention of this model's packs would make them on a CPU.
        dtype: type of queries and keys.
    """
    from fitune.data.packing.tree import build_tree
    from fitune.ops.packed_loss import to_pack

    pack = to_pack(build_tree(rows, share=False, keep_ends=True), "cpu")
    if config is not None:
        _fill(pack.layout, config.get_text_config(), dtype)
    entries = replace(
        pack.entries, weights=pack.entries.weights.to("meta"), row_weights=pack.entries.row_weights.to("meta")
    )
    return replace(
        pack,
        input_ids=pack.input_ids.to("meta"),
        position_ids=pack.position_ids.to("meta"),
        predicting=pack.predicting.to("meta"),
        layout=_on_meta(pack.layout),
        entries=entries,  # rows and targets keep their values: chunks are cut by them
    )


def _with_ids(row: PlannedRow, vocabulary: int) -> PlannedRow:
    ids = tuple(number % vocabulary for number in range(len(row.input_ids)))
    return PlannedRow(ids, row.trained, row.row_number)


def _fill(layout: TreeLayout, text: PretrainedConfig, dtype: torch.dtype) -> None:
    from fitune.ops.grouped_attention import remember

    heads = text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or heads
    size = getattr(text, "head_dim", None) or text.hidden_size // heads
    query = torch.empty((layout.num_nodes * kv_heads, heads // kv_heads * size), dtype=dtype, device="meta")
    key = torch.empty((layout.num_nodes * kv_heads, size), dtype=dtype, device="meta")
    for window in {None, getattr(text, "sliding_window", None)}:
        remember(layout, query, key, window)


def _on_meta(layout: TreeLayout) -> TreeLayout:
    groups = tuple(
        replace(group, query_nodes=group.query_nodes.to("meta"), key_nodes=group.key_nodes.to("meta"))
        for group in layout.groups
    )
    kept = {name: value if value is None else value.to("meta") for name, value in layout.kept.items()}
    return replace(
        layout,
        groups=groups,
        places=layout.places.to("meta"),
        positions=layout.positions.to("meta"),
        ends=layout.ends.to("meta"),
        read=None if layout.read is None else layout.read.to("meta"),
        kept=kept,
    )
