"""Read rows from a file, a folder or the hub; every fault names its place.

In: a path (its ending says the format, `.gz` and the like behind it) or `hub:NAME[:CONFIG]`. Out: `Rows`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fitune.data.read.formats import READERS
from fitune.data.read.formats.arrow_tables import is_saved_dataset, read_saved_dataset
from fitune.data.read.formats.compressed import UNPACK, unpacked
from fitune.data.read.formats.found import Found
from fitune.data.read.formats.hub_rows import read_hub
from fitune.data.read.formats.large_files import Stored, first_lines, is_large, stored
from fitune.data.read.stored_rows import Lazy, joined_rows
from fitune.errors import DataError, did_you_mean

FIRST = 1_000  # rows that say what a large file holds
HELD_OUT = {"test", "tests", "validation", "valid", "val", "dev", "eval"}


@dataclass(frozen=True)
class Rows:
    """Rows as they were found: `numbers[i]` is where row i stands in its file, from 1.

    Rows of a large file stay there and are read each time they are asked for. `encoding` is that of the text, `notes` say
    what was read otherwise than as it stands. Of several files, `parts` are (name, number before its first row, number of
    its last row). `found_columns` are the columns, None where they are those of the rows in memory.
    """

    name: str
    rows: Sequence[Mapping[str, object]]
    numbers: Sequence[int]
    sha256: str
    encoding: str = "utf-8"
    notes: tuple[str, ...] = ()
    parts: tuple[tuple[str, int, int], ...] = ()
    found_columns: tuple[str, ...] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that some row has, in order of appearance."""
        return columns_of(self.rows) if self.found_columns is None else self.found_columns

    def place(self, number: int) -> str:
        """`` (b.jsonl, row 3)`` for a row of several files, numbered through; "" where there is one."""
        found = next(((name, before) for name, before, last in self.parts if number <= last), None)
        return f" ({found[0]}, row {number - found[1]})" if found and len(self.parts) > 1 else ""


def read_rows(name: str, hub_split: str = "train") -> Rows:
    """Read a data set.

    Raises:
        DataError: missing, empty, of an unknown kind, not UTF-8, or damaged; with file and line.
    """
    if name.startswith("hub:"):
        found, fingerprint = read_hub(name, hub_split)
        return _rows(name, found, fingerprint)
    path = Path(name).expanduser()
    if path.is_dir():
        return _read_folder(name, path, hub_split)
    if not path.is_file():
        if os.path.lexists(path):
            raise DataError(f"{name} is no file to be read: it is a pipe, a device, or a link that leads nowhere")
        near = did_you_mean(path.name, [entry.name for entry in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise DataError(f"there is no data file at {name}{near}")
    packed, ending = _endings(path)
    if ending not in READERS:
        raise DataError(
            f"{name} ends in {path.suffix or 'nothing'}; data files end in {', '.join(READERS)}, and may have "
            f"{', '.join(UNPACK)} behind it"
        )
    try:
        if is_large(path, bool(packed)) and (rows := stored(name, path, packed, ending)):
            return _rows(name, rows, _sha256(path))
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror}") from error
    plain = unpacked(name, packed, content) if packed else content
    if not plain.strip():
        raise DataError(f"{name} is empty")
    return _rows(name, READERS[ending](name, plain), hashlib.sha256(content).hexdigest())


def columns_of(rows: Iterable[Mapping[str, object]]) -> tuple[str, ...]:
    """Every column that some row has, in order of appearance."""
    return tuple(dict.fromkeys(key for row in rows for key in row))


def first_rows(name: str) -> Sequence[Mapping[str, object]]:
    """Some rows of a data set, to see what it holds: the first ones of a large file, all of a small one.

    Raises:
        DataError: as `read_rows`.
    """
    path = Path(name).expanduser()
    large = path.is_file() and is_large(path, packed=False) and _endings(path) == ("", ".jsonl")
    found = (first_lines(path) if large else []) or read_rows(name).rows
    return found[:FIRST] if isinstance(found, Lazy) else found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rows(name: str, found: Found | Stored, sha256: str) -> Rows:
    if not found.rows:
        raise DataError(f"{name} contains no rows")
    notes = tuple(dict.fromkeys(found.notes))
    return Rows(
        name=name,
        rows=found.rows if isinstance(found, Stored) else tuple(found.rows),
        numbers=found.numbers if isinstance(found, Stored) else tuple(found.numbers),
        sha256=sha256,
        encoding=found.encoding,
        notes=notes,
        found_columns=found.columns if isinstance(found, Stored) else None,
    )


def _endings(path: Path) -> tuple[str, str]:
    """(what packs the file or "", its format)."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in UNPACK:
        return suffixes[-1], suffixes[-2] if len(suffixes) > 1 else ""
    return "", suffixes[-1] if suffixes else ""


def _read_folder(name: str, folder: Path, split: str) -> Rows:
    """A folder: a set that `datasets` saved, or data files, one behind the other by name.

    Raises:
        DataError: no data files, or files of which some are for testing by their name.
    """
    if is_saved_dataset(folder):
        found = read_saved_dataset(name, folder, split)
        return _rows(name, found, _digest(folder, sorted(folder.rglob("*.arrow"))))
    entries = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    files = [entry for entry in entries if _endings(entry)[1] in READERS]
    if not files:
        raise DataError(f"{name} is a folder without data files; they end in {', '.join(READERS)}")
    held_out = [file.name for file in files if HELD_OUT & set(re.split(r"[^a-z]+", file.name.lower()))]
    if held_out and len(held_out) < len(files):
        raise DataError(
            f"{name} is a folder whose files are for training and for testing ({', '.join(held_out)}); name them one by one: "
            "data.train and data.eval"
        )
    others = [entry.name for entry in entries if entry not in files]
    notes = [f"not read, since they are no data files: {', '.join(others)}"] if others else []
    return joined(name, [read_rows(str(file)) for file in files], notes)


def joined(name: str, parts: Sequence[Rows], notes: Sequence[str] = ()) -> Rows:
    """Rows of several files behind each other, numbered through.

    Args:
        notes: what is to be said beside the files' own notes.
    """
    numbers = array("q")
    places: list[tuple[str, int, int]] = []
    for part in parts:
        before = numbers[-1] if numbers else 0
        numbers.extend(number + before for number in part.numbers)
        places.append((Path(part.name).name, before, numbers[-1]))
    return Rows(
        name=name,
        rows=joined_rows([part.rows for part in parts]),
        numbers=numbers if any(isinstance(part.numbers, array) for part in parts) else tuple(numbers),
        sha256=hashlib.sha256("".join(part.sha256 for part in parts).encode()).hexdigest(),
        encoding=", ".join(dict.fromkeys(part.encoding for part in parts)),
        notes=(*(f"{Path(part.name).name}: {note}" for part in parts for note in part.notes), *notes),
        parts=tuple(places),
        found_columns=tuple(dict.fromkeys(column for part in parts for column in part.columns)),
    )


def _digest(folder: Path, files: list[Path]) -> str:
    """SHA-256 over the files' names and contents."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file.relative_to(folder)).encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def write_jsonl(rows: Iterable[Mapping[str, object]], out: Path) -> int:
    """Write rows, whole or not at all; an existing file is not overwritten.

    Raises:
        DataError: the file exists.
    """
    if out.exists():
        raise DataError(f"{out} exists already; name another file or delete it")
    return replace_jsonl(rows, out)


def replace_jsonl(rows: Iterable[Mapping[str, object]], out: Path) -> int:
    """Write rows, whole or not at all, in place of what is there; returns their number."""
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.part")
    count = 0
    with scratch.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    scratch.rename(out)
    return count
