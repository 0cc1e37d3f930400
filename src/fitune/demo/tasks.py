"""Tasks as data: English → Pig Latin, pairs of right and wrong Pig Latin, and English → Yoda speak."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from fitune.demo.pig_latin import to_pig_latin
from fitune.demo.pig_latin_slips import with_slips
from fitune.demo.sentences import make_sentences, whole_words
from fitune.demo.yoda import make_yoda_sentences
from fitune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEMO = "demo:pig-latin"
SYSTEM = "Translate to Pig Latin."
DEMO_ROWS = 4000
PAIRS = "demo:pig-latin-pairs"
PAIR_ROWS = 600
YODA = "demo:yoda"
YODA_SYSTEM = "Translate to Yoda speak."
YODA_ROWS = 1000
# Task → rows where a name gives no count.
TASKS = {
    name.removeprefix("demo:"): count for name, count in ((DEMO, DEMO_ROWS), (PAIRS, PAIR_ROWS), (YODA, YODA_ROWS))
}


def is_demo(name: str) -> bool:
    """Whether a data set's name means a built-in task: `demo:pig-latin`, `demo:pig-latin-pairs`, `demo:yoda`, each with
    `:COUNT`."""
    return name.startswith("demo:")


def demo_rows(
    name: str, tokenizer: PreTrainedTokenizerBase, seed: int, exclude: Collection[str] = ()
) -> tuple[dict[str, str], ...]:
    """A demo task's rows: generated sentences and their translations, or a right and a wrong one of each.

    Raises:
        DataError: another name, or a count that is none.
    """
    task, _, count = name.removeprefix("demo:").partition(":")
    if task not in TASKS or not (count or "1").isdigit() or count == "0":
        raise DataError(
            f'"{name}" is no demo task; there are {", ".join(f"demo:{one}" for one in TASKS)}, with :COUNT behind for so many rows'
        )
    number = int(count or TASKS[task])
    if task == "yoda":
        return tuple(yoda_rows(number, seed, exclude))
    sentences = make_sentences(whole_words(tokenizer), number, seed, exclude)
    if task == "pig-latin":
        return tuple(pig_latin_row(sentence) for sentence in sentences)
    return tuple(pig_latin_pairs(sentences, seed))


def yoda_rows(count: int, seed: int, exclude: Collection[str] = ()) -> Iterator[dict[str, str]]:
    """Rows of English → Yoda speak, none whose English is in `exclude`."""
    for sentence in make_yoda_sentences(count, seed, exclude):
        yield {"system": YODA_SYSTEM, "prompt": sentence.english, "completion": sentence.yoda}


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
