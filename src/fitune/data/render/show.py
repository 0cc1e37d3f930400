"""Rows as text with what is trained marked, or token by token; in colour or in plain characters."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, cast

from rich.text import Text

from fitune.data.token_rows import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


LEGEND = "trained text is on green; ↵ is a line break"
PLAIN_LEGEND = "trained text stands in ⟦ ⟧; ↵ is a line break"
TRAINED, SEPARATOR = "black on green", "│"
LONGEST_CHARACTER = 12  # tokens; an emoji of several code points may take as many


def show_row(row: TokenRow, tokenizer: PreTrainedTokenizerBase, colour: bool, tokens: bool = False) -> Text:
    """One row as text. Colour: what is trained is on green. Plain: it stands in ⟦ ⟧.

    Args:
        tokens: show where each token ends; blanks are shown as · then, so that nothing that is trained is invisible.
    """
    text = Text(f"row {row.row_number}: {row.num_tokens} tokens, {row.num_trained} trained\n", style="bold")
    pieces = whole_characters(row, tokenizer)
    for trained, part in groupby(pieces, key=lambda piece: piece[1]):
        shown = (_seen(piece, tokens) for piece, _ in part)
        said = SEPARATOR.join(shown) + SEPARATOR if tokens else "".join(shown)
        if colour:
            text.append(said, style=TRAINED if trained else "")
        else:
            text.append(f"⟦{said}⟧" if trained else said)
    return text


def whole_characters(row: TokenRow, tokenizer: PreTrainedTokenizerBase) -> list[tuple[str, bool]]:
    """(text, trained) of each token; tokens that share a character, as in Chinese or emoji, are one piece."""
    pieces: list[tuple[str, bool]] = []
    start = 0
    while start < len(row.input_ids):
        end = start + 1
        piece = _decoded(row, tokenizer, start, end)
        while "\ufffd" in piece and end < min(len(row.input_ids), start + LONGEST_CHARACTER):
            end += 1
            piece = _decoded(row, tokenizer, start, end)
        if "\ufffd" in piece:  # no character: the data itself holds U+FFFD, or bytes that are none
            end = start + 1
            piece = _decoded(row, tokenizer, start, end)
        pieces.append((piece, any(row.trained[start:end])))
        start = end
    return pieces


def _decoded(row: TokenRow, tokenizer: PreTrainedTokenizerBase, start: int, end: int) -> str:
    return cast(str, tokenizer.decode(list(row.input_ids[start:end])))


def _seen(piece: str, tokens: bool) -> str:
    return visible(piece) if tokens else piece.replace("\n", "↵\n")


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
