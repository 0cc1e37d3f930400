"""English → Pig Latin, by rule.

A leading consonant cluster moves to the end and "ay" follows (string → ingstray); a word that begins with a vowel
gains "way" (eat → eatway). Punctuation stays in place. Where the rule is silent: "qu" moves as one consonant
(quick → ickquay); y is a consonant at the start of a word and a vowel elsewhere (yellow → ellowyay, my → ymay);
a capital first letter stays a capital first letter (The → Ethay); hyphened parts are words of their own; an
apostrophe is part of its word (don't → on'tday); a word without a vowel gains "ay" (hmm → hmmay).
"""

from __future__ import annotations

import re

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
CLUSTER = re.compile(r"y?(?:qu|[^aeiouyàáâäãåèéêëìíîïòóôöõùúûüq'’]|q)*")


def to_pig_latin(sentence: str) -> str:
    """Translate every word of a sentence; all else stays as it is."""
    return WORD.sub(lambda found: pig_word(found.group()), sentence)


def pig_word(word: str) -> str:
    """Translate one word (letters, apostrophes inside)."""
    lowered = word.lower()
    cluster = CLUSTER.match(lowered)
    moved = cluster.end() if cluster else 0
    if moved == 0:
        changed = lowered + "way"
    elif moved >= len(lowered):
        changed = lowered + "ay"
    else:
        changed = lowered[moved:] + lowered[:moved] + "ay"
    if word.isupper() and len(word) > 1:
        return changed.upper()
    return changed[0].upper() + changed[1:] if word[0].isupper() else changed
