"""Pig Latin that is subtly wrong: one to three words of a sentence carry a slip, the rest is right.

Every slip is one that learners (and half-trained models) make: the ending alone, the move alone, a piece of the
consonant cluster left behind, "ay" after a vowel, "way" after a consonant, the word left in English, two letters swapped.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from fitune.demo.pig_latin import CLUSTER, WORD, pig_word

MOST_SLIPS = 3


def with_slips(sentence: str, generator: random.Random) -> str:
    """The sentence's translation with 1 to 3 wrong words, never more than a third of them (and at least one)."""
    found = list(WORD.finditer(sentence))
    count = generator.randint(1, max(1, min(MOST_SLIPS, len(found) // 3)))
    # A word on which every slip gives the right answer does not exist: left in English it differs from Pig Latin.
    wrong = {match.start() for match in generator.sample(found, min(count, len(found)))}
    return WORD.sub(
        lambda match: slip(match.group(), generator) if match.start() in wrong else pig_word(match.group()), sentence
    )


def slip(word: str, generator: random.Random) -> str:
    """A wrong translation of one word."""
    right = pig_word(word)
    ways = list(SLIPS)
    generator.shuffle(ways)
    for way in ways:
        made = way(word.lower(), _moved(word.lower()), generator)
        if word[0].isupper():
            made = made[:1].upper() + made[1:]
        if made != right:
            return made
    return word


def _moved(word: str) -> int:
    """Letters of the leading consonant cluster, at most all but one."""
    match = CLUSTER.match(word)
    return min(match.end() if match else 0, len(word) - 1)


def _ending_alone(word: str, moved: int, generator: random.Random) -> str:
    return word + ("ay" if moved else "way")


def _move_alone(word: str, moved: int, generator: random.Random) -> str:
    return word[moved:] + word[:moved]


def _part_of_the_cluster(word: str, moved: int, generator: random.Random) -> str:
    part = moved - 1 if moved > 1 else min(moved + 1, len(word) - 1)
    return word[part:] + word[:part] + "ay"


def _wrong_ending(word: str, moved: int, generator: random.Random) -> str:
    return word[moved:] + word[:moved] + ("way" if moved else "ay")


def _untranslated(word: str, moved: int, generator: random.Random) -> str:
    return word


def _letters_swapped(word: str, moved: int, generator: random.Random) -> str:
    right = pig_word(word)
    at = generator.randrange(max(1, len(right) - 3))
    return right[:at] + right[at : at + 2][::-1] + right[at + 2 :]


SLIPS: tuple[Callable[[str, int, random.Random], str], ...] = (
    _ending_alone, _move_alone, _part_of_the_cluster, _wrong_ending, _untranslated, _letters_swapped,
)  # fmt: skip
