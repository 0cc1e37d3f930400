"""Files of the demo tasks: Pig Latin and Yoda rows written as JSON Lines, sentences read from a text file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from fitune.data.read.files import read_rows, write_jsonl
from fitune.data.read.forms.cells import Cells
from fitune.demo.tasks import YODA_SYSTEM, pig_latin_pairs, pig_latin_row, yoda_rows
from fitune.errors import DataError

HUB_YODA = "hub:dvgodoy/yoda_sentences"


def read_sentences(path: str) -> list[str]:
    """One sentence a line, blank lines left out.

    Raises:
        DataError: as `read_rows`.
    """
    rows = read_rows(path)
    if "text" not in rows.columns:
        raise DataError(f"{path} is no list of sentences; give a .txt file with one a line")
    found = (Cells(row, {}, number).maybe("text").strip() for row, number in zip(rows.rows, rows.numbers, strict=True))
    return [text for text in found if text]


def make_pig_latin(sentences: Iterable[str], out: Path) -> int:
    """Write rows of English → Pig Latin; returns their number."""
    return write_jsonl((pig_latin_row(sentence) for sentence in sentences), out)


def make_pig_latin_pairs(sentences: Iterable[str], out: Path, seed: int) -> int:
    """Write rows of right and wrong Pig Latin; returns their number."""
    return write_jsonl(pig_latin_pairs(sentences, seed), out)


def make_yoda(out: Path, count: int, seed: int) -> int:
    """Write rows of English → Yoda by the demo's rule; returns their number."""
    return write_jsonl(yoda_rows(count, seed), out)


def take_hub_yoda(out: Path) -> int:
    """Write rows of English → Yoda from a set of 720 on the hub (columns sentence and translation); returns their number.

    Raises:
        DataError: the hub cannot be reached.
    """
    rows = read_rows(HUB_YODA).rows
    made = ({"system": YODA_SYSTEM, "prompt": row["sentence"], "completion": row["translation"]} for row in rows)
    return write_jsonl(made, out)
