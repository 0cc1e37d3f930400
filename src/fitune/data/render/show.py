"""Rows with every token and its label visible, in colour or in plain characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from rich.text import Text

from fitune.data.token_rows import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def show_row(row: TokenRow, tokenizer: PreTrainedTokenizerBase, colour: bool) -> Text:
    """One row. Colour: trained tokens green, the others dim. Plain: trained tokens stand in [ ], `|` parts tokens.

    Line breaks are shown as ↵ and blanks as ·, so that nothing that is trained is invisible.
    """
    text = Text(f"row {row.row_number}: {row.num_tokens} tokens, {row.num_trained} trained\n", style="bold")
    pieces = [visible(cast(str, tokenizer.decode([token]))) for token in row.input_ids]
    if colour:
        for piece, trained in zip(pieces, row.trained, strict=True):
            text.append(piece, style="green" if trained else "dim")
            text.append("|", style="bright_black")
        return text
    for piece, trained in zip(pieces, row.trained, strict=True):
        text.append(f"[{piece}]" if trained else f"{piece}|")
    return text


def label_rows(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, object]]:
    """For `--json`: position, id, text and whether the token is trained."""
    return [
        {"position": position, "id": token, "text": tokenizer.decode([token]), "trained": trained}
        for position, (token, trained) in enumerate(zip(row.input_ids, row.trained, strict=True))
    ]


def visible(piece: str) -> str:
    """A token's text with blanks and line breaks made visible."""
    return piece.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


def trained_text(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> str:
    """The trained tokens alone, decoded: what the model is taught to say."""
    chosen: Sequence[int] = [token for token, trained in zip(row.input_ids, row.trained, strict=True) if trained]
    return cast(str, tokenizer.decode(list(chosen)))
