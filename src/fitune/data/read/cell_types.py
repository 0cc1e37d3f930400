"""The type of a cell: what is empty, what becomes text and how, and which characters no text may hold.

In: a value as its file has it. Out: text, or a `DataError` that says where it stands. The rule is the same for every
column of every form: null and NaN are empty, numbers and truth values are written as in JSON, objects and lists as JSON.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal

from fitune.errors import DataError

NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


def is_empty(value: object) -> bool:
    """Whether a cell holds nothing: null, or the NaN that tables write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def as_text(value: object, what: str) -> str:
    """A cell as text.

    Args:
        what: the place, for a fault: ``row 3: input``.

    Raises:
        DataError: infinite, bytes, of an unknown type, or with a character that is none.
    """
    if isinstance(value, str):
        return checked(value, what)
    if isinstance(value, list | tuple | Mapping):
        return as_json(value, what)
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, Decimal) and value.is_finite():
        return str(value)
    raise DataError(f"{what} is {value!r:.60} ({type(value).__name__}); expected text")


def as_json(value: object, what: str) -> str:
    """An object or a list as JSON, NaN written as null.

    Raises:
        DataError: nested too deep, or with a value that JSON does not have.
    """
    try:
        text = json.dumps(_without_nan(value), ensure_ascii=False, allow_nan=False, default=_plain)
    except RecursionError as error:
        raise DataError(f"{what} is nested too deep to be written as JSON; take it out or flatten it") from error
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is {value!r:.60}, which JSON cannot hold ({error}); write it as text") from error
    return checked(text, what)


def checked(text: str, what: str) -> str:
    """The text, if every character of it is one.

    Raises:
        DataError: half of a surrogate pair, which no tokenizer reads, or NUL, which many take for the end.
    """
    if found := NOT_TEXT.search(text):
        code = ord(found.group())
        kind = "NUL" if code == 0 else "half of a surrogate pair"
        raise DataError(f"{what} has U+{code:04X} ({kind}) as character {found.start() + 1}; take it out of the data")
    return text


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if is_empty(value) else value


def _plain(value: object) -> str:
    if isinstance(value, date | time | Decimal):
        return as_text(value, "a value")
    raise TypeError(f"it holds a {type(value).__name__}")
