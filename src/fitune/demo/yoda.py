"""English → Yoda speak by a rule: what follows the verb comes first, then a comma, then subject and verb.

"The old farmer will carry the basket to the market." → "The basket to the market, the old farmer will carry." Sentences
come from a small grammar whose parts of speech are known, so that the rule is exact and needs no parser.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

NOUNS = (
    "farmer teacher doctor child sailor king queen baker painter soldier neighbor girl boy woman man dog cat horse bird "
    "fox wolf bear rabbit mouse fish tree river mountain garden house kitchen window door table chair lamp letter book "
    "story song picture map key box basket bag coat hat shoe ring coin stone bridge road boat train wagon bell clock "
    "candle cup bowl spoon knife loaf apple pear cake soup cheese flower leaf seed field forest island village market "
    "school church tower castle wall fence gate ladder rope hammer wheel engine machine answer question lesson secret "
    "promise friend stranger guest brother sister uncle daughter son student worker driver pilot nurse clerk"
).split()
ADJECTIVES = (
    "old young small large tall short heavy light quiet loud bright dark red blue green yellow black white golden silver "
    "wooden broken empty full cold warm hot wet dry clean dirty soft hard sweet bitter strong weak brave kind clever "
    "lazy angry happy sad tired hungry rich poor strange famous simple careful gentle rough smooth narrow wide deep thin"
).split()
# (plain, third person, past, past participle)
VERBS = tuple(
    tuple(forms.split("/"))
    for forms in (
        "carry/carries/carried/carried find/finds/found/found see/sees/saw/seen watch/watches/watched/watched "
        "open/opens/opened/opened close/closes/closed/closed paint/paints/painted/painted build/builds/built/built "
        "break/breaks/broke/broken mend/mends/mended/mended buy/buys/bought/bought sell/sells/sold/sold "
        "bring/brings/brought/brought take/takes/took/taken hide/hides/hid/hidden lose/loses/lost/lost "
        "follow/follows/followed/followed help/helps/helped/helped visit/visits/visited/visited "
        "remember/remembers/remembered/remembered forget/forgets/forgot/forgotten know/knows/knew/known "
        "teach/teaches/taught/taught learn/learns/learned/learned read/reads/read/read write/writes/wrote/written "
        "hear/hears/heard/heard touch/touches/touched/touched lift/lifts/lifted/lifted pull/pulls/pulled/pulled "
        "push/pushes/pushed/pushed throw/throws/threw/thrown catch/catches/caught/caught wash/washes/washed/washed "
        "cook/cooks/cooked/cooked share/shares/shared/shared draw/draws/drew/drawn cut/cuts/cut/cut "
        "guard/guards/guarded/guarded choose/chooses/chose/chosen"
    ).split()
)
AUXILIARIES = ("will", "must", "can", "should", "may", "will not", "must not", "cannot", "should not")
PRONOUNS = ("I", "you", "he", "she", "we", "they")
PLACES = ("in", "near", "behind", "under", "beside", "above")
DETERMINERS = ("the", "a", "this", "my", "your", "our", "her", "his")


@dataclass(frozen=True)
class YodaSentence:
    """A sentence in both orders."""

    english: str
    yoda: str


def make_yoda_sentences(count: int, seed: int, exclude: Collection[str] = ()) -> list[YodaSentence]:
    """`count` different sentences, none whose English is in `exclude`."""
    generator = random.Random(seed)
    seen, made = set(exclude), []
    while len(made) < count:
        sentence = _sentence(generator)
        if sentence.english not in seen:
            seen.add(sentence.english)
            made.append(sentence)
    return made


def to_yoda(subject: str, verb: str, rest: str) -> YodaSentence:
    """Both orders of a sentence of three parts."""
    return YodaSentence(f"{_capital(subject)} {verb} {rest}.", f"{_capital(rest)}, {subject} {verb}.")


def _sentence(generator: random.Random) -> YodaSentence:
    pronoun = generator.random() < 0.3
    subject = generator.choice(PRONOUNS) if pronoun else _noun_phrase(generator)
    if generator.random() < 0.2:
        rest = generator.choice(ADJECTIVES)
        if generator.random() < 0.4:
            rest += f" and {generator.choice([word for word in ADJECTIVES if word != rest])}"
        return to_yoda(subject, _being(generator, subject), rest)
    rest = _noun_phrase(generator)
    if generator.random() < 0.5:
        rest += f" {generator.choice(PLACES)} {_noun_phrase(generator)}"
    return to_yoda(subject, _verb_group(generator, subject), rest)


def _verb_group(generator: random.Random, subject: str) -> str:
    plain, third, past, participle = generator.choice(VERBS)
    kind = generator.random()
    single = subject not in ("I", "you", "we", "they")
    if kind < 0.4:
        return f"{generator.choice(AUXILIARIES)} {plain}"
    if kind < 0.65:
        return past
    if kind < 0.85:
        return third if single else plain
    return f"{'has' if single else 'have'} {participle}"


def _being(generator: random.Random, subject: str) -> str:
    if subject == "I":
        return generator.choice(("am", "was"))
    return generator.choice(("are", "were") if subject in ("you", "we", "they") else ("is", "was"))


def _noun_phrase(generator: random.Random) -> str:
    words = [generator.choice(NOUNS)]
    if generator.random() < 0.5:
        words.insert(0, generator.choice(ADJECTIVES))
    determiner = generator.choice(DETERMINERS)
    if determiner == "a" and words[0][0] in "aeiou":
        determiner = "an"
    return " ".join((determiner, *words))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
