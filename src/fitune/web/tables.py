"""Plain tables and marked answers as HTML, everything escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape


def table(head: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table of texts in a frame that scrolls sideways on a narrow screen."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f'<div class="scroll"><table>{said}<thead><tr>{top}</tr></thead><tbody>{lines}</tbody></table></div>'


def marked(answer: str, wanted: str) -> str:
    """The answer with the words that stand where they are wanted marked."""
    right = wanted.split()
    words: list[str] = []
    for place, word in enumerate(answer.split()):
        good = place < len(right) and right[place] == word
        words.append(f"<mark>{escape(word)}</mark>" if good else escape(word))
    return " ".join(words)
