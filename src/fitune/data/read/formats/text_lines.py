""".txt: a piece of text a line, as it stands; only a line feed ends a line."""

from __future__ import annotations

from fitune.data.read.formats.encoding import decode
from fitune.data.read.formats.found import Found
from fitune.errors import DataError


def read_text(name: str, content: bytes) -> Found:
    """Lines that are not blank, indentation and all; the carriage return of Windows' line ends is left out.

    Raises:
        DataError: not UTF-8, or lines that end in carriage returns alone.
    """
    text, encoding = decode(name, content)
    if "\r" in text and "\n" not in text:
        raise DataError(
            f"{name} has carriage returns and no line feeds, so that it is one line; convert it: tr '\\r' '\\n' < {name}"
        )
    found = Found(encoding=encoding)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            found.add({"text": line.removesuffix("\r")}, number)
    return found
