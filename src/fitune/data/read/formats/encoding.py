"""Bytes → text: UTF-8, or what a byte order mark says; anything else is refused with a proposal, never guessed.

The proposal comes from charset-normalizer where it is installed (transformers' downloads bring it).
"""

from __future__ import annotations

import codecs
from typing import NoReturn

from fitune.errors import DataError

# Longest first: the mark of UTF-32 LE begins with that of UTF-16 LE.
MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
PROPOSED = 3


def to_utf8(name: str, content: bytes) -> tuple[bytes, str]:
    """The content as UTF-8 without its mark, and the encoding that it had. UTF-8 itself is not checked.

    Raises:
        DataError: not what its mark says, or UTF-16 without a mark.
    """
    encoding = next((encoding for mark, encoding in MARKS.items() if content.startswith(mark)), None)
    if encoding == "utf-8":
        return content[len(codecs.BOM_UTF8) :], encoding
    if encoding is not None:
        try:
            return content.decode(encoding).encode(), encoding
        except UnicodeError as error:
            raise DataError(f"{name} has the mark of {encoding} and is none: {error}; save it as UTF-8") from error
    if b"\0" in content[:2] and len(content) > 1:
        kind = "utf-16be" if content[0] == 0 else "utf-16le"
        raise DataError(f"{name} looks like {kind} without its mark; {_advice(name, kind)}")
    return content, "utf-8"


def decode(name: str, content: bytes) -> tuple[str, str]:
    """The text, and the encoding that it had.

    Raises:
        DataError: not UTF-8 and without a mark that says what it is.
    """
    content, encoding = to_utf8(name, content)
    try:
        return content.decode(), encoding
    except UnicodeDecodeError as error:
        refuse_encoding(name, content, error.start)


def refuse_encoding(name: str, content: bytes, at: int) -> NoReturn:
    """Raises DataError for the byte at `at`, with the encodings that the text may have and how its line reads in each."""
    begin = content.rfind(b"\n", 0, at) + 1
    end = content.find(b"\n", at)
    line = content[begin : end if end >= 0 else len(content)].strip()
    line_number = content.count(b"\n", 0, at) + 1
    place = f"byte 0x{content[at]:02x} on line {line_number} (offset {at})"
    readings = _readings(content, line)
    if not readings:
        raise DataError(f"{name} is not UTF-8: {place}; find out what encoding it has, and {_advice(name, 'ENCODING')}")
    shown = "; ".join(f"as {encoding} the line reads {text[:60]!r}" for encoding, text in readings.items())
    encoding = "ENCODING" if len(readings) > 1 else next(iter(readings))
    advice = f"with the encoding that reads right, {_advice(name, encoding)}"
    raise DataError(f"{name} is not UTF-8: {place}. {shown[0].upper()}{shown[1:]}; {advice}")


def _readings(content: bytes, line: bytes) -> dict[str, str]:
    """Encodings that the whole content may have → the line read so, the likeliest first."""
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return {}
    found: dict[str, str] = {}
    for match in from_bytes(content[:1_000_000]):
        if len(found) == PROPOSED:
            break
        # Of encodings that read it alike, the one that systems write: Windows' and China's, not their relatives.
        alike = [match.encoding, *match.could_be_from_charset]
        encoding = next((one for one in ("cp1252", "gb18030", "cp932", "cp1251") if one in alike), match.encoding)
        text = line.decode(encoding, errors="replace")
        if text not in found.values():
            found[encoding] = text
    return found


def _advice(name: str, encoding: str) -> str:
    return f"convert it: iconv -f {encoding} -t utf-8 {name} > utf8-{name.rsplit('/', 1)[-1]}"
