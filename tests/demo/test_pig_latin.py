"""The rule of the course (pig → igpay, eat → eatway), and what we decided where it is silent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitune.demo.pig_latin import to_pig_latin

TABLE = {
    "pig": "igpay",
    "string": "ingstray",
    "banana": "ananabay",
    "eat": "eatway",
    "The": "Ethay",
    "quick": "ickquay",
    "square": "aresquay",
    "my": "ymay",
    "rhythm": "ythmrhay",
    "yellow": "ellowyay",
    "don't": "on'tday",
    "It's": "It'sway",
    "hmm": "hmmay",
    "NASA": "ASANAY",
    "A": "Away",
    "well-known": "ellway-ownknay",
    "42": "42",
    "élan": "élanway",
}


@pytest.mark.parametrize(("word", "wanted"), TABLE.items())
def test_words(word: str, wanted: str):
    assert to_pig_latin(word) == wanted


def test_punctuation_stays_in_place():
    assert to_pig_latin('"Glue the sheet," he said: why?') == '"Ueglay ethay eetshay," ehay aidsay: ywhay?'


@given(st.lists(st.from_regex(r"[a-z]{1,12}", fullmatch=True), min_size=1, max_size=12))
def test_every_word_keeps_its_letters_and_gains_an_ending(words: list[str]):
    translated = to_pig_latin(" ".join(words)).split(" ")
    assert len(translated) == len(words)
    for word, changed in zip(words, translated, strict=True):
        assert changed.endswith("ay")
        ending = "way" if sorted(changed) == sorted(word + "way") else "ay"
        assert sorted(changed) == sorted(word + ending)
