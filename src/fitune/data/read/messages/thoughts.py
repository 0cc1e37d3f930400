"""Reasoning that stands in an answer's text: `<think>…</think>` at its head becomes the message's `reasoning_content`."""

from __future__ import annotations

import re

from fitune.errors import DataError

OPEN, CLOSE = "<think>", "</think>"
HEAD = re.compile(r"\s*<think>(.*?)</think>(?:(?:[^\S\n]*\n)+|[^\S\n]*)", re.DOTALL)


def split_thought(content: str, where: str) -> tuple[str, str]:
    """(reasoning, answer); reasoning is "" where there is none, or an empty block.

    Raises:
        DataError: a block that does not end, one behind the answer's beginning, or an end without a beginning.
    """
    if OPEN not in content and CLOSE not in content:
        return "", content
    found = HEAD.match(content)
    if found is None and content.lstrip().startswith(OPEN):
        raise DataError(
            f"{where}: an answer begins with {OPEN} and has no {CLOSE}; end the reasoning before the answer"
        )
    thought, answer = (found.group(1).strip(), content[found.end() :]) if found else ("", content)
    if answer.find(OPEN) < answer.find(CLOSE) and OPEN in answer:
        raise DataError(
            f"{where}: an answer has reasoning behind its beginning ({_around(answer, OPEN)!r}); put it first"
        )
    for mark, missing in ((OPEN, CLOSE), (CLOSE, OPEN)):
        if _is_mark(answer, mark):
            raise DataError(
                f"{where}: an answer has {mark} and no {missing} ({_around(answer, mark)!r}); reasoning stands in "
                f"{OPEN}…{CLOSE} before the answer"
            )
    if OPEN in thought:
        raise DataError(f"{where}: reasoning has a second {OPEN} in it; write one block")
    return thought, answer


def _is_mark(text: str, mark: str) -> bool:
    """Whether a mark at hand divides the text, and is not named in it: it begins or ends a line, or touches both words."""
    return re.search(rf"^\s*{mark}|{mark}\s*$|[\w.!?]{mark}\w", text, re.MULTILINE) is not None


def _around(text: str, mark: str) -> str:
    at = text.index(mark)
    return text[max(at - 20, 0) : at + len(mark) + 20]
