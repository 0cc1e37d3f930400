"""Tasks as data: English → Pig Latin and pairs of right and wrong Pig Latin (made here), English → Yoda (from the hub)."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from fitune.data.read.files import Rows, read_rows
from fitune.demo.pig_latin import to_pig_latin
from fitune.demo.pig_latin_slips import with_slips
from fitune.demo.sentences import make_sentences, whole_words
from fitune.errors import DataError

DEMO = "demo:pig-latin"
SYSTEM = "Translate to Pig Latin."
YODA = "hub:dvgodoy/yoda_sentences"
DEMO_ROWS = 4000
PAIRS = "demo:pig-latin-pairs"
PAIR_ROWS = 600


def is_demo(name: str) -> bool:
    """Whether a data set's name means a built-in task: `demo:pig-latin`, `demo:pig-latin-pairs`, each with `:COUNT`."""
    return name.startswith("demo:")


def demo_rows(name: str, tokenizer: Any, seed: int, exclude: Collection[str] = ()) -> Rows:
    """A demo task's rows: generated sentences and their translations, or a right and a wrong one of each.

    Raises:
        DataError: another name, or a count that is none.
    """
    task, _, count = name.removeprefix("demo:").partition(":")
    tasks = {DEMO.removeprefix("demo:"): DEMO_ROWS, PAIRS.removeprefix("demo:"): PAIR_ROWS}
    if task not in tasks or not (count or "1").isdigit() or count == "0":
        raise DataError(f'"{name}" is no demo task; there are {DEMO} and {PAIRS}, with :COUNT behind for so many rows')
    sentences = make_sentences(whole_words(tokenizer), int(count or tasks[task]), seed, exclude)
    if task == "pig-latin":
        rows = tuple(pig_latin_row(sentence) for sentence in sentences)
    else:
        rows = tuple(pig_latin_pairs(sentences, seed))
    return Rows(name, rows, tuple(range(1, len(rows) + 1)), f"generated, seed {seed}")


def pig_latin_row(sentence: str) -> dict[str, str]:
    """One row: the short system prompt, the sentence, its translation."""
    return {"system": SYSTEM, "prompt": sentence, "completion": to_pig_latin(sentence)}


def pig_latin_pairs(sentences: Iterable[str], seed: int) -> Iterator[dict[str, str]]:
    """Preference rows: the right translation, and one with slips in a few words."""
    generator = random.Random(seed)
    for sentence in sentences:
        row = pig_latin_row(sentence)
        yield {
            "system": row["system"],
            "prompt": row["prompt"],
            "chosen": row["completion"],
            "rejected": with_slips(sentence, generator),
        }


def read_sentences(path: str) -> list[str]:
    """One sentence a line, blank lines left out.

    Raises:
        DataError: as `read_rows`.
    """
    rows = read_rows(path)
    if "text" not in rows.columns:
        raise DataError(f"{path} is no list of sentences; give a .txt file with one a line")
    return [row["text"] for row in rows.rows]


def make_pig_latin(sentences: Iterable[str], out: Path) -> int:
    """Write rows of English → Pig Latin; returns their number."""
    return write_jsonl((pig_latin_row(sentence) for sentence in sentences), out)


def make_pig_latin_pairs(sentences: Iterable[str], out: Path, seed: int) -> int:
    """Write rows of right and wrong Pig Latin; returns their number."""
    return write_jsonl(pig_latin_pairs(sentences, seed), out)


def make_yoda(out: Path) -> int:
    """Write rows of English → Yoda from the hub set (columns sentence and translation); returns their number.

    Raises:
        DataError: the hub cannot be reached.
    """
    rows = read_rows(YODA).rows
    system = "Translate to Yoda speak."
    made = ({"system": system, "prompt": row["sentence"], "completion": row["translation"]} for row in rows)
    return write_jsonl(made, out)


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
