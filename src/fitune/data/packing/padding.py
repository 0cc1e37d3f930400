"""Token rows → one padded rectangle. B rows, S tokens of the longest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fitune.data.token_rows import TokenRow

IGNORED = -100


def pad_collate(rows: Sequence[TokenRow], pad_id: int) -> dict[str, Tensor]:
    """input_ids, attention_mask and labels, each (B, S), padded on the right.

    A label is −100 wherever the token is not a target, by position: a pad token that shares its id with the end
    token takes nothing away from the end token.
    """
    length = max(row.num_tokens for row in rows)
    input_ids = torch.full((len(rows), length), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    labels = torch.full((len(rows), length), IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        ids = torch.tensor(row.input_ids, dtype=torch.long)
        input_ids[index, : len(ids)] = ids
        attention_mask[index, : len(ids)] = 1
        labels[index, : len(ids)] = torch.where(torch.tensor(row.trained), ids, IGNORED)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
