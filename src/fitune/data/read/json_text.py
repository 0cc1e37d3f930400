"""JSON read strictly: a key that stands twice, a number too long and nesting too deep are faults like any other.

In: text. Out: plain values, or `BadJson`. Keys are interned, so that rows share them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from sys import intern

BLANKS = " \t\r\n\ufeff"


class BadJson(ValueError):
    """Text that is no JSON, or none that can be relied on.

    `at` is the character where the fault stands, None where it has no single place; `more`: a whole value came before.
    """

    def __init__(self, reason: str, at: int | None = None, more: bool = False):
        super().__init__(reason)
        self.reason, self.at, self.more = reason, at, more


def loads(text: str) -> object:
    """The value of a text that holds one.

    Raises:
        BadJson: it is none.
    """
    value, end = first_value(text, 0)
    if end < len(text):
        raise BadJson("Extra data", end, more=True)
    return value


def first_value(text: str, at: int) -> tuple[object, int]:
    """The value that begins at a character, blanks before it left out, and where the text after its blanks goes on.

    Raises:
        BadJson: none begins there.
    """
    at = _skip(text, at)
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        raise BadJson(error.msg, error.pos) from error
    except RecursionError as error:
        raise BadJson("objects or lists nested too deep; flatten them") from error
    except BadJson:
        raise
    except ValueError as error:  # Python's limit on the digits of a whole number
        raise BadJson("a number with thousands of digits; write it as text, in quotes") from error
    return value, _skip(text, end)


def values(text: str) -> Iterator[tuple[int, object]]:
    """Values that follow each other with nothing but blanks between them, each with the character where it begins.

    Raises:
        BadJson: where one is none.
    """
    at = _skip(text, 0)
    while at < len(text):
        begin = at
        value, at = first_value(text, at)
        yield begin, value


def place(text: str, at: int) -> tuple[int, int]:
    """Line and column of a character, from 1."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in BLANKS:
        at += 1
    return at


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = {intern(key): value for key, value in pairs}
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise BadJson(f'the key "{twice}" stands twice in an object; keep one of them')
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)
