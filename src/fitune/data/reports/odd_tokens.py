"""Tokens that cannot be what anybody meant: text that the tokenizer deletes or does not know, hardly a trained token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fitune.data.render.renderer import Renderer
from fitune.data.reports.counting import named
from fitune.data.reports.token_facts import TokenFacts, facts_of, unknown_id
from fitune.data.token_rows import TokenRow

# Shares beyond which data is hardly meant so: of rows; of trained and of unknown tokens among all.
ODD_SHARE = 0.1
LEAST_TRAINED = 0.005
MOST_UNKNOWN = 0.01


def odd_tokens(rows: Sequence[TokenRow], renderer: Renderer, duplicates: int) -> list[str]:
    """`odd_facts` of rows that stand alone."""
    if not rows:
        return []
    return odd_facts(facts_of(rows, renderer), np.asarray([row.row_number for row in rows]), renderer, duplicates)


def odd_facts(facts: TokenFacts, numbers: np.ndarray, renderer: Renderer, duplicates: int) -> list[str]:
    """Warnings for tokens that cannot be what anybody meant: text that the tokenizer deletes or does not know.

    Args:
        numbers: row numbers of the rows that were measured.
        duplicates: rows whose text is another's; more rows than these with another's tokens have lost their text.
    """
    found: list[str] = []
    rows, tokens, trained = len(numbers), int(facts.tokens.sum()), int(facts.trained.sum())
    if not rows:
        return found
    if 0 < trained < LEAST_TRAINED * tokens:
        found.append(f"only {trained:,} of {tokens:,} tokens ({trained / tokens:.2%}) are trained")
    marks_alone = numbers[facts.marks_alone].tolist()
    if len(marks_alone) >= max(ODD_SHARE * rows, 1):
        found.append(
            f"{named(marks_alone)} whose trained tokens are end tokens alone: the answer's text gives no token; look at "
            "a row with `fitune data show`, and at the tokenizer's normalizer"
        )
    equal = rows - len(np.unique(facts.hashes)) - duplicates
    if equal >= max(ODD_SHARE * rows, 2):
        found.append(f"{equal:,} rows have the tokens of another row, although their text differs")
    share = int(facts.unknown.sum()) / tokens
    if unknown_id(renderer) is not None and share >= MOST_UNKNOWN:
        found.append(
            f"{share:.1%} of the tokens are unknown to the tokenizer ({renderer.tokenizer.unk_token}), in "
            f"{named(numbers[facts.unknown > 0].tolist())}: the model cannot tell what stood there"
        )
    return found
