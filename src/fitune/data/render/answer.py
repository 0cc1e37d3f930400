"""A generated answer → its reasoning and its content, by the marks that the chat template writes between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fitune.data.render.chat_format import ChatFormat


@dataclass(frozen=True)
class SaidText:
    """What a model said: `reasoning` is "" where it did not think, `content` where it never came to an answer."""

    reasoning: str
    content: str


def split_answer(
    text: str, chat_format: ChatFormat, special_texts: Sequence[str], thinking_opened: bool = False
) -> SaidText:
    """Reasoning and content of an answer.

    Args:
        text: decoded with its special tokens, without the end token.
        special_texts: removed from what is returned.
        thinking_opened: the prompt already opened a thought, so that a text without its end is all thought.
    """
    mark = chat_format.between.strip()
    opening = chat_format.thought_opening.strip()
    if mark and mark in text:
        thought, content = text.rsplit(mark, 1)
    elif thinking_opened or (opening and text.lstrip().startswith(opening)):
        thought, content = text, ""
    else:
        thought, content = "", text
    return SaidText(_bare(thought, opening, special_texts), _bare(content, chat_format.opening.strip(), special_texts))


def _bare(text: str, opening: str, special_texts: Sequence[str]) -> str:
    """The text without what opens it, special tokens and the blanks at its ends."""
    text = text.strip().removeprefix(opening)
    for special in special_texts:
        text = text.replace(special, "")
    return text.strip()
