"""Sentences for the demo: grammar-like word strings over a vocabulary too wide to learn by heart.

The words are the whole-word tokens of the model's own vocabulary, so no word list is shipped. With a narrow
vocabulary (20 subjects × 20 verbs × 20 objects) a model learns the words and not the rule.
"""

from __future__ import annotations

import random
import re
from bisect import bisect
from collections.abc import Collection, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WHOLE_WORD = re.compile(r"[Ġ▁][a-z]{3,}")
FUNCTION_WORDS = (
    "the a an of to and in on at for with from by was is are were be been has had have not but or as it he she they "
    "we you his her their its our your this that these those all some no will would can could should may must do "
    "does did if when then than so up down out over under off into through after before there here where who which "
    "what how why very too more most each both few many much other same such only just also now never always"
).split()
CONTRACTIONS = "don't it's can't won't isn't didn't we're they've man's boy's girl's dog's".split()
EVERYDAY_LETTERS = 6  # everyday words are short, and this model's vocabulary, learnt on textbooks, is not


def whole_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lowercase words that are one token with a leading blank, commonest first (ids follow frequency in BPE).

    Some are only pieces of words (" resc"); they teach the rule as well.
    """
    vocabulary = tokenizer.get_vocab()
    ordered = sorted(vocabulary.items(), key=lambda item: item[1])
    return [token[1:] for token, _ in ordered if WHOLE_WORD.fullmatch(token)]


def make_sentences(words: Sequence[str], count: int, seed: int, exclude: Collection[str] = ()) -> list[str]:
    """`count` different sentences of 6 to 14 words, none of them in `exclude`.

    A third of the words are function words. The others are dealt with weight 1/(rank + 2000), a quarter of that for
    long ones: common short words come several times in a few thousand sentences, and most of the list comes at all.
    """
    generator = random.Random(seed)
    content = _deal(generator, words, [_weight(rank, word) for rank, word in enumerate(words)])
    seen, sentences = set(exclude), []
    while len(sentences) < count:
        sentence = _sentence(generator, content)
        if sentence not in seen:
            seen.add(sentence)
            sentences.append(sentence)
    return sentences


def _deal(generator: random.Random, words: Sequence[str], weights: Sequence[float]) -> Iterator[str]:
    """Words without end, from shuffled decks as large as the list: in each deck a word has its share of the cards,
    rounded up or down. Drawn one by one instead, a third of the words whose share is one card would never come.
    """
    sums = list(accumulate(weights))
    card = sums[-1] / len(words)
    while True:
        offset = generator.random()
        deck = [words[bisect(sums, (place + offset) * card, hi=len(words) - 1)] for place in range(len(words))]
        generator.shuffle(deck)
        yield from deck


def _weight(rank: int, word: str) -> float:
    return (1 if len(word) <= EVERYDAY_LETTERS else 0.25) / (rank + 2000)


def _sentence(generator: random.Random, content: Iterator[str]) -> str:
    """One sentence: capital first letter, now and then a comma or a contraction, a stop at the end."""
    length = generator.randint(6, 14)
    chosen = [generator.choice(FUNCTION_WORDS) if generator.random() < 1 / 3 else next(content) for _ in range(length)]
    if generator.random() < 0.06:
        chosen[generator.randrange(length)] = generator.choice(CONTRACTIONS)
    if generator.random() < 0.08:
        chosen[generator.randrange(1, length - 1)] += ","
    text = " ".join(chosen)
    return text[0].upper() + text[1:] + ("?" if generator.random() < 0.05 else ".")
