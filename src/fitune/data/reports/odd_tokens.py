"""Tokens that cannot be what anybody meant: text that the tokenizer deletes or does not know, hardly a trained token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fitune.data.render.renderer import Renderer
from fitune.data.reports.counting import named, num_duplicates
from fitune.data.token_rows import TokenRow

# Shares beyond which data is hardly meant so: of rows; of trained and of unknown tokens among all.
ODD_SHARE = 0.1
LEAST_TRAINED = 0.005
MOST_UNKNOWN = 0.01


def odd_tokens(rows: Sequence[TokenRow], renderer: Renderer, duplicates: int) -> list[str]:
    """Warnings for tokens that cannot be what anybody meant: text that the tokenizer deletes or does not know.

    Args:
        duplicates: rows whose text is another's; more rows than these with another's tokens have lost their text.
    """
    if not rows:
        return []
    tokenizer, found = renderer.tokenizer, []
    marks = sorted({*tokenizer.all_special_ids, *renderer.stop_ids})
    taught = [(row, row.arrays[0][row.arrays[1]]) for row in rows]
    tokens, trained = sum(row.num_tokens for row in rows), sum(len(ids) for _, ids in taught)
    if 0 < trained < LEAST_TRAINED * tokens:
        found.append(f"only {trained:,} of {tokens:,} tokens ({trained / tokens:.2%}) are trained")
    marks_alone = [row.row_number for row, ids in taught if len(ids) and np.isin(ids, marks).all()]
    if len(marks_alone) >= ODD_SHARE * len(rows):
        found.append(
            f"{named(marks_alone)} whose trained tokens are end tokens alone: the answer's text gives no token; look at "
            "a row with `fitune data show`, and at the tokenizer's normalizer"
        )
    equal = num_duplicates(row.arrays[0].tobytes() for row in rows) - duplicates
    if equal >= max(ODD_SHARE * len(rows), 2):
        found.append(f"{equal:,} rows have the tokens of another row, although their text differs")
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown not in (*renderer.stop_ids, tokenizer.bos_token_id, tokenizer.pad_token_id):
        held = [(row.row_number, int((row.arrays[0] == unknown).sum())) for row in rows]
        share = sum(count for _, count in held) / tokens
        if share >= MOST_UNKNOWN:
            first = [number for number, count in held if count]
            found.append(
                f"{share:.1%} of the tokens are unknown to the tokenizer ({tokenizer.unk_token}), in {named(first)}: "
                "the model cannot tell what stood there"
            )
    return found
