"""Tasks as data: English → Pig Latin, and pairs of right and wrong Pig Latin."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from fitune.demo.pig_latin import to_pig_latin
from fitune.demo.pig_latin_slips import with_slips
from fitune.demo.sentences import make_sentences, whole_words
from fitune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEMO = "demo:pig-latin"
SYSTEM = "Translate to Pig Latin."
DEMO_ROWS = 4000
PAIRS = "demo:pig-latin-pairs"
PAIR_ROWS = 600


def is_demo(name: str) -> bool:
    """Whether a data set's name means a built-in task: `demo:pig-latin`, `demo:pig-latin-pairs`, each with `:COUNT`."""
    return name.startswith("demo:")


def demo_rows(
    name: str, tokenizer: PreTrainedTokenizerBase, seed: int, exclude: Collection[str] = ()
) -> tuple[dict[str, str], ...]:
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
        return tuple(pig_latin_row(sentence) for sentence in sentences)
    return tuple(pig_latin_pairs(sentences, seed))


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
