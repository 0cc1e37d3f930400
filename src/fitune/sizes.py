"""Sizes of memory as people write them.

In: ``16GiB``, ``24 GB``, ``800M``. Out: bytes, or what is wrong.
"""

from __future__ import annotations

import re

# Letter → power. With an i, and for a bare letter as torch and the kernel write it, 1024; with a B alone 1000.
LETTERS = "KMGT"


def parse_bytes(text: str) -> int:
    """Bytes of a written size: GiB and G are 2³⁰, GB is 10⁹, a number alone is bytes.

    Raises:
        ValueError: no size, or none above zero; the message goes on after the setting's name.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?|\.\d+)\s*(?:([KMGT])(i?B)?|B)?\s*", text, re.IGNORECASE)
    if found is None:
        raise ValueError(f'is "{text}", which is no size; write 16GiB, 24GB or 800MiB')
    number, letter, unit = found.groups()
    base = 1000 if (unit or "").upper() == "B" else 1024
    num_bytes = int(float(number) * base ** (LETTERS.index(letter.upper()) + 1 if letter else 0))
    if num_bytes < 1:
        raise ValueError(f'is "{text}"; use a size above zero, for example 16GiB')
    return num_bytes
