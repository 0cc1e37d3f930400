"""Formats of files → the rows as they stand, each fault with its place: by ending, compressed or not."""

from __future__ import annotations

from collections.abc import Callable

from fitune.data.read.formats.arrow_tables import read_arrow, read_parquet
from fitune.data.read.formats.delimited import read_csv, read_tsv
from fitune.data.read.formats.found import Found
from fitune.data.read.formats.json_files import read_json, read_json_lines
from fitune.data.read.formats.text_lines import read_text

READERS: dict[str, Callable[[str, bytes], Found]] = {
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".txt": read_text,
}
