"""Read rows from a file or from the hub; every fault names its place.

In: a path (.jsonl .json .csv .parquet .txt) or `hub:NAME[:CONFIG]`. Out: `Rows`.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.errors import DataError, did_you_mean


@dataclass(frozen=True)
class Rows:
    """Rows as they were found: `numbers[i]` is where row i stands in its file, from 1."""

    name: str
    rows: tuple[dict[str, Any], ...]
    numbers: tuple[int, ...]
    sha256: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that some row has, in order of appearance."""
        return tuple(dict.fromkeys(key for row in self.rows for key in row))


def read_rows(name: str, hub_split: str = "train") -> Rows:
    """Read a data set.

    Raises:
        DataError: missing, empty, of an unknown kind, not UTF-8, or damaged; with file and line.
    """
    if name.startswith("hub:"):
        return _read_hub(name, hub_split)
    path = Path(name).expanduser()
    if not path.is_file():
        near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"there is no data file at {name}{near}")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{name} ends in {path.suffix or 'nothing'}; data files end in {', '.join(READERS)}")
    content = path.read_bytes()
    if not content.strip():
        raise DataError(f"{name} is empty")
    numbered = reader(name, content)
    if not numbered:
        raise DataError(f"{name} contains no rows")
    numbers, rows = zip(*numbered, strict=True)
    return Rows(name, rows, numbers, hashlib.sha256(content).hexdigest())


def _decode(name: str, content: bytes) -> str:
    """UTF-8 text, with or without a byte order mark."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{name} is not UTF-8: byte 0x{content[error.start]:02x} on line {line} (offset {error.start}); "
            "convert it, for example with: iconv -f latin1 -t utf-8"
        ) from error


def _read_jsonl(name: str, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    rows = []
    for number, line in enumerate(_decode(name, content).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{name}, line {number}, column {error.colno}: bad JSON ({error.msg}): {line.strip()[:80]}"
            ) from error
        rows.append((number, _object(name, f"line {number}", row)))
    return rows


def _read_json(name: str, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    try:
        data = json.loads(_decode(name, content))
    except json.JSONDecodeError as error:
        hint = "; a file with one object per line should end in .jsonl" if error.msg == "Extra data" else ""
        raise DataError(f"{name}, line {error.lineno}, column {error.colno}: bad JSON ({error.msg}){hint}") from error
    if isinstance(data, dict) and len(lists := [value for value in data.values() if isinstance(value, list)]) == 1:
        data = lists[0]
    if not isinstance(data, list):
        raise DataError(f"{name} contains a JSON {type(data).__name__}; expected a list of objects")
    return [(number, _object(name, f"item {number}", row)) for number, row in enumerate(data, start=1)]


def _read_csv(name: str, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_decode(name, content), newline=""), strict=True)
    rows = []
    try:
        for number, row in enumerate(reader, start=1):
            if None in row:
                raise DataError(
                    f"{name}, line {reader.line_num}: {len(row) - 1 + len(row[None])} values "
                    f"for {len(reader.fieldnames or [])} columns; quote values that contain commas"
                )
            rows.append((number, dict(row)))
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: bad CSV ({error})") from error
    return rows


def _read_parquet(name: str, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(io.BytesIO(content))
    except pa.ArrowException as error:
        raise DataError(f"{name} is not a complete Parquet file: {error}") from error
    return list(enumerate(table.to_pylist(), start=1))


def _read_text(name: str, content: bytes) -> list[tuple[int, dict[str, Any]]]:
    lines = _decode(name, content).splitlines()
    return [(number, {"text": line.strip()}) for number, line in enumerate(lines, start=1) if line.strip()]


READERS: dict[str, Callable[[str, bytes], list[tuple[int, dict[str, Any]]]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
}


def _read_hub(name: str, split: str) -> Rows:
    """A hub data set through the datasets library: `hub:NAME` or `hub:NAME:CONFIG`."""
    from datasets import load_dataset

    _, repository, *config = name.split(":")
    try:
        dataset = load_dataset(repository, config[0] if config else None, split=split)
        rows = tuple(dict(row) for row in dataset)
    except Exception as error:  # the library raises many kinds; each means the same to the user
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f'the hub dataset "{repository}" (split {split}) cannot be loaded: {first}. '
            "Check the name, the split and the network, or give a file"
        ) from error
    if not rows:
        raise DataError(f"{name} has no rows in split {split}")
    return Rows(name, rows, tuple(range(1, len(rows) + 1)), str(getattr(dataset, "_fingerprint", "")))


def _object(name: str, place: str, row: Any) -> dict[str, Any]:
    """A row must be an object with columns."""
    if not isinstance(row, dict):
        raise DataError(f'{name}, {place}: a {type(row).__name__}; a row is an object such as {{"prompt": …}}')
    return row


def write_jsonl(rows: Iterable[dict[str, Any]], out: Path) -> int:
    """Write rows, whole or not at all; an existing file is not overwritten.

    Raises:
        DataError: the file exists.
    """
    if out.exists():
        raise DataError(f"{out} exists already; name another file or delete it")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.part")
    count = 0
    with scratch.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    scratch.rename(out)
    return count
