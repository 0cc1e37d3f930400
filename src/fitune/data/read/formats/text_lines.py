""".txt: a piece of text a line, as it stands; only a line feed ends a line."""

from __future__ import annotations

from fitune.data.read.formats.encoding import decode
from fitune.data.read.formats.found import Found


def read_text(name: str, content: bytes) -> Found:
    """Lines that are not blank, indentation and all; the carriage return of Windows' line ends is left out.

    Raises:
        DataError: not UTF-8.
    """
    text, encoding = decode(name, content)
    found = Found(encoding=encoding)
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            found.add({"text": line.removesuffix("\r")}, number)
    return found
