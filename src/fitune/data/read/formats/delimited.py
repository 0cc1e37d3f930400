""".csv and .tsv: a header and a record a row; the delimiter is what the header is divided by."""

from __future__ import annotations

import csv
import io
from collections.abc import Generator, Iterator
from contextlib import contextmanager

from fitune.data.read.formats.encoding import decode
from fitune.data.read.formats.found import Found
from fitune.errors import DataError

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MARK = "\ufeff"


def read_csv(name: str, content: bytes) -> Found:
    """Records with commas between their cells, or semicolons, tabs or bars where the header has them.

    Raises:
        DataError: with the line: a record of another length than the header, or quotes that do not match.
    """
    return _read(name, content, ",")


def read_tsv(name: str, content: bytes) -> Found:
    """Likewise, with tabs unless the header has none.

    Raises:
        DataError: as `read_csv`.
    """
    return _read(name, content, "\t")


def _read(name: str, content: bytes, usual: str) -> Found:
    text, encoding = decode(name, content)
    first, _, rest = text.partition("\n")
    declared = first.strip().removeprefix("sep=") if first.startswith("sep=") else ""
    text = rest if declared else text
    found = Found(encoding=encoding)
    delimiter = declared or _delimiter(text, usual)
    if delimiter != usual:
        found.notes.append(f"cells are divided by {DELIMITERS.get(delimiter, repr(delimiter))}")
    with _long_cells():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        try:
            _add_records(name, reader, delimiter, found, 1 if declared else 0)
        except csv.Error as error:
            raise DataError(f"{name}, line {reader.line_num}: bad CSV ({error})") from error
    return found


def _add_records(name: str, reader: Iterator[list[str]], delimiter: str, found: Found, lines_before: int) -> None:
    header = [cell.strip() for cell in next(reader, [])]
    _refuse_equal(name, header)
    number = 0
    for record in reader:
        line = getattr(reader, "line_num", 0) + lines_before
        if not record:
            continue
        if record[0].startswith(MARK):
            record[0] = record[0].removeprefix(MARK)
            found.notes.append(f"line {line} begins with a byte order mark, as joined files have; it is left out")
        if [cell.strip() for cell in record] == header:
            found.notes.append(f"line {line} is the header again, as joined files have it; it is left out")
            continue
        number += 1
        if len(record) != len(header):
            raise DataError(
                f"{name}, line {line}: {len(record)} values for {len(header)} columns; quote values that contain "
                f"{DELIMITERS.get(delimiter, delimiter)}"
            )
        found.add(dict(zip(header, record, strict=True)), number)


def _delimiter(text: str, usual: str) -> str:
    """What divides the header into most cells, the usual delimiter where none does."""
    counts = {}
    for delimiter in (usual, *DELIMITERS):
        try:
            with _long_cells():
                counts[delimiter] = len(
                    next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
                )
        except csv.Error:
            counts[delimiter] = 0
    return max(counts, key=lambda delimiter: counts[delimiter])


def _refuse_equal(name: str, header: list[str]) -> None:
    if twice := next((column for column in header if header.count(column) > 1), None):
        raise DataError(
            f'{name}: the column "{twice}" stands {header.count(twice)} times in the header ({", ".join(header)}); rename '
            "all but one"
        )


@contextmanager
def _long_cells() -> Generator[None, None, None]:
    """Cells of any length, which the csv module limits to 131,072 characters."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)
