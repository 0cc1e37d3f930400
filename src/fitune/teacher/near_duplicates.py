"""Texts that say nearly the same: MinHash over word triples, by the datasketch library."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from fitune.errors import MissingExtra

SAME = 0.8  # estimated share of common triples from which two texts count as one
PERMUTATIONS = 128


class NearDuplicates:
    """Texts seen so far."""

    def __init__(self, texts: Iterable[str] = ()):
        try:
            from datasketch import MinHashLSH
        except ImportError as error:
            raise MissingExtra("near duplicates need datasketch: pip install 'fitune[generate]'") from error
        self._index: Any = MinHashLSH(threshold=SAME, num_perm=PERMUTATIONS)
        self._count = 0
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Remember a text."""
        self._index.insert(self._count, _signature(text))
        self._count += 1

    def has(self, text: str) -> bool:
        """Whether a text like it is there."""
        return bool(self._index.query(_signature(text)))


def _signature(text: str) -> Any:
    from datasketch import MinHash

    words = re.findall(r"\w+", text.lower())
    signature = MinHash(num_perm=PERMUTATIONS)
    for at in range(max(len(words) - 2, 1)):
        signature.update(" ".join(words[at : at + 3]).encode())
    return signature
