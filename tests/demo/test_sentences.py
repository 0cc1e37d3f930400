"""The generator's vocabulary is wide and its sentences are like sentences."""

import re

from fitune.demo.pig_latin import to_pig_latin
from fitune.demo.sentences import FUNCTION_WORDS, make_sentences, whole_words


class Words:
    """A vocabulary as tokenizers give it: token → id."""

    def __init__(self, *tokens: str):
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        return {token: number for number, token in enumerate(self.tokens)}


def test_whole_words_are_single_tokens_behind_a_blank_in_order_of_frequency():
    tokens = ("Ġthe", "Ġof", "Ġcat", "cat", "Ġcats", "ĠThe", "▁dog", "Ġx", "Ġcan't", "Ġéclair")
    assert whole_words(Words(*tokens)) == ["the", "cat", "cats", "dog"]


def test_sentences_are_distinct_repeatable_and_shaped():
    words = [f"w{chr(97 + n // 26)}{chr(97 + n % 26)}" for n in range(400)]
    one = make_sentences(words, 300, seed=3)
    assert one == make_sentences(words, 300, seed=3) != make_sentences(words, 300, seed=4)
    assert len(set(one)) == 300
    for sentence in one:
        assert re.fullmatch(r"[A-Z][a-z']*,?( [a-z']+,?){5,13}[.?]", sentence), sentence
        assert len(to_pig_latin(sentence).split()) == len(sentence.split())
    used = {word.strip(",.?").lower() for sentence in one for word in sentence.split()}
    assert used >= set(words)  # dealt from decks: none is left out by chance
    assert len(used & set(FUNCTION_WORDS)) > 60


def test_excluded_sentences_are_not_made():
    words = ["pig", "dog", "cat"]
    first = make_sentences(words, 20, seed=0)
    assert not set(first) & set(make_sentences(words, 20, seed=0, exclude=first))
