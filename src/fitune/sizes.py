"""Sizes of memory as people write them.

In: ``16GiB``, ``24 GB``, ``8000M``. Out: bytes, or what is wrong; and bytes as text.
"""

from __future__ import annotations

import re

MIB, GIB = 2**20, 2**30
UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_bytes(text: str) -> int:
    """``16GiB``, ``16 GB``, ``16G``, ``8000MiB`` → bytes. GiB and G are 2**30, GB is 10**9.

    Raises:
        ValueError: no number with a unit, or not above zero.
    """
    found = re.fullmatch(r"\s*([+-]?\d+(?:\.\d+)?)\s*([kmgt]?)(i?)(b?)\s*", text.replace(",", ""), re.IGNORECASE)
    if found is None or not (found[2] or found[4]):
        raise ValueError(f'"{text}" is not a memory size; write a number and its unit, for example 16GiB or 15.7GB')
    number, binary = float(found[1]), bool(found[3]) or not found[4]
    if number <= 0:
        raise ValueError(f'"{text}" is not above zero; give the memory of the card, for example 16GiB')
    return round(number * (1024 if binary else 1000) ** UNITS[found[2].lower()])


def size_in(num_bytes: float, whole_bytes: float) -> str:
    """``1,520 MiB`` or ``12.34 GiB``: one unit for all figures of a table whose largest is ``whole_bytes``."""
    if whole_bytes < 10 * GIB:
        return f"{num_bytes / MIB:,.0f} MiB" if abs(num_bytes) >= MIB or num_bytes == 0 else "< 1 MiB"
    return f"{num_bytes / GIB:,.2f} GiB" if abs(num_bytes) >= 0.005 * GIB or num_bytes == 0 else "< 0.01 GiB"
