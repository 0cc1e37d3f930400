"""Large files: where their rows lie, and not the rows themselves, which are read when asked for.

.jsonl (also compressed), .parquet and .arrow. Everything is looked at once; what is no plain layout of its format is left to
the reader of small files, which knows all layouts and names the place of a fault.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import shutil
import tempfile
import zlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from fitune.data.read.formats.arrow_tables import NULLS, one_of_each_name, without_null_fields
from fitune.data.read.json_text import BadJson, loads
from fitune.data.read.stored_rows import LineRows, PartRows
from fitune.errors import DataError

LARGE_BYTES = 16 << 20
PACKED_AS = 4  # a compressed file is large from a fourth of that


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Rows that stay in their file; otherwise as `Found`. `columns` are those that some row has."""

    rows: Sequence[Mapping[str, object]]
    numbers: Sequence[int]
    columns: tuple[str, ...]
    encoding: str = "utf-8"
    notes: tuple[str, ...] = ()


def is_large(path: Path, packed: bool) -> bool:
    """Whether a file's rows are better left where they are."""
    return path.stat().st_size * (PACKED_AS if packed else 1) >= LARGE_BYTES


def stored(name: str, path: Path, packed: str, ending: str) -> Stored | None:
    """The rows of a large file; None where the reader of small files must look at it.

    Args:
        packed: the ending of what packs the file, or "".
    """
    if ending == ".jsonl":
        return _stored_lines(path, packed)
    reader = {".parquet": _parquet, ".arrow": _arrow}.get(ending)
    return reader(name, path) if reader and not packed else None


def _stored_lines(path: Path, packed: str) -> Stored | None:
    try:
        file = _unpacked(path, packed) if packed else path.open("rb")
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return None
    found = _lines(file)
    if found is None:
        file.close()
    return found


def _unpacked(path: Path, packed: str) -> IO[bytes]:
    """The content in a file without a name, which goes when it is closed."""
    opened: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open, ".zst": _zstd}
    with opened[packed](path) as source:
        plain = cast("IO[bytes]", tempfile.TemporaryFile())  # noqa: SIM115 (lives as long as its rows)
        shutil.copyfileobj(source, plain, 1 << 20)
    plain.seek(0)
    return plain


def _zstd(path: Path) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")


def _lines(file: IO[bytes]) -> Stored | None:
    """An object a line, blank lines between them."""
    starts, stops, numbers = array("q"), array("q"), array("q")
    columns: dict[str, None] = {}
    notes: list[str] = []
    at = 0
    for number, line in enumerate(file, start=1):
        begin, at = at, at + len(line)
        if line.startswith(codecs.BOM_UTF8):
            line = line.removeprefix(codecs.BOM_UTF8)
            if number > 1:
                notes.append(f"line {number} begins with a byte order mark, as joined files have; it is left out")
        if line.isspace():
            continue
        try:
            row = loads(line.decode().rstrip("\r\n"))
        except (BadJson, UnicodeDecodeError):
            return None
        if not isinstance(row, dict):
            return None
        if not row.keys() <= columns.keys():
            columns.update(dict.fromkeys(row))
        starts.append(begin)
        stops.append(at)
        numbers.append(number)
    if not numbers:
        return None
    return Stored(
        rows=LineRows(file, starts, stops), numbers=numbers, columns=tuple(columns), notes=tuple(dict.fromkeys(notes))
    )


def _parquet(name: str, path: Path) -> Stored | None:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
        names = list(file.schema_arrow.names)
        counts = [file.metadata.row_group(at).num_rows for at in range(file.num_row_groups)]
        return _of_tables(name, file.read_row_group, counts, names)
    except (pa.ArrowException, OSError, KeyError):
        return None


def _arrow(name: str, path: Path) -> Stored | None:
    import pyarrow as pa

    try:
        source = pa.memory_map(str(path))
        with path.open("rb") as file:
            opener = pa.ipc.open_file if file.read(6) == b"ARROW1" else pa.ipc.open_stream
        table = opener(source).read_all()
        return _of_tables(name, lambda _: table, [table.num_rows], table.column_names)
    except (pa.ArrowException, OSError, KeyError):
        return None


def _of_tables(name: str, table_of: Callable[[int], Any], counts: Sequence[int], names: list[str]) -> Stored | None:
    """Rows of a table in parts, of which one is in memory."""
    one_of_each_name(name, names)
    if not sum(counts):
        return None
    held: tuple[int, Any] = (-1, None)
    changed = False

    def read(part: int, first: int, count: int) -> list[Mapping[str, object]]:
        nonlocal held, changed
        if held[0] != part:
            held = part, table_of(part)
        rows, bare = without_null_fields(held[1].slice(first, count).to_pylist(maps_as_pydicts="strict"))
        changed = changed or bare
        return cast("list[Mapping[str, object]]", rows)

    rows = PartRows(read, counts)
    for _ in rows:
        pass
    return Stored(rows=rows, numbers=range(1, len(rows) + 1), columns=tuple(names), notes=(NULLS,) if changed else ())


def first_lines(path: Path, most_bytes: int = 1 << 20) -> list[dict[str, object]]:
    """The first rows of a file of JSON Lines, to see what it holds; none where it is no such file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            lines = file.read(most_bytes).rpartition(b"\n")[0].splitlines()
        rows = [loads(line.removeprefix(codecs.BOM_UTF8).decode()) for line in lines if not line.isspace()]
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (BadJson, UnicodeDecodeError):
        return []
    return [row for row in rows if isinstance(row, dict)] if all(isinstance(row, dict) for row in rows) else []
