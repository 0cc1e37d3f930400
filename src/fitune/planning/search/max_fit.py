"""The question turned round: the longest sequence, the largest batch or rank that fits a card.

In: a function from a size to its `Plan`, and the card's memory. Out: `Limit`, both sides of the border predicted.
Knows nothing of what the size means. Imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fitune.planning.predict import Plan


@dataclass(frozen=True)
class Limit:
    """The largest size that fits."""

    value: int | None
    """None: not even the smallest fits."""
    plan: Plan
    """At `value`, or at the smallest size when nothing fits."""
    too_large: int | None
    """The next size up, which does not fit; None when the search ended at its ceiling."""
    too_large_plan: Plan | None
    tried: int
    """How many sizes were predicted."""


def largest(plan_at: Callable[[int], Plan], usable_bytes: int, ceiling: int, start: int = 1, step: int = 1) -> Limit:
    """The largest multiple of ``step`` (or ``ceiling`` itself) whose plan fits.

    More never needs less, so one border is looked for: doubling until something does not fit, then halving the
    interval, each guess by a straight line between the known needs where that halves faster.

    Args:
        plan_at: size → plan; its ``fits`` decides.
        usable_bytes: the card's, for the straight lines only.
        ceiling: the largest size that makes sense.
        start: a size to begin with.

    Raises:
        ValueError: a ceiling, start or step below 1.
    """
    for name, value in (("ceiling", ceiling), ("start", start), ("step", step)):
        if value < 1:
            raise ValueError(f"{name} is {value}; use 1 or more")
    last = -(-ceiling // step)
    known: dict[int, Plan] = {}

    def size(index: int) -> int:
        return min(index * step, ceiling)

    def fits(index: int) -> bool:
        if index not in known:
            known[index] = plan_at(size(index))
        return known[index].fits

    low, high = 0, last + 1  # the border is between: low fits (0 needs nothing), high does not
    index = min(max(start // step, 1), last)
    while high - low > 1:
        if fits(index):
            low = index
        else:
            high = index
        if high - low > 1:
            index = _next(low, high, last, known, usable_bytes)
    return Limit(
        value=size(low) if low else None,
        plan=known[low or 1],
        too_large=size(high) if high <= last else None,
        too_large_plan=known.get(high),
        tried=len(known),
    )


def _next(low: int, high: int, last: int, known: dict[int, Plan], usable_bytes: int) -> int:
    """The next index to try, strictly between ``low`` and ``high``."""
    line = _line(low, high, known, usable_bytes)
    if high > last:  # nothing too large is known yet: at least twice as far
        return min(max(2 * low, line or 0), last)
    middle = (low + high) // 2
    # Every other guess halves the interval, so that a bent curve costs no more than twice a plain bisection.
    if line is None or len(known) % 2:
        return middle
    return min(max(line, low + 1), high - 1)


def _line(low: int, high: int, known: dict[int, Plan], usable_bytes: int) -> int | None:
    """Where a straight line through two known needs meets the card's memory."""
    below = sorted(index for index in known if index <= low)
    first = low if high in known and low in known else below[-2] if len(below) > 1 else None
    second = high if high in known else low
    if first is None or first == second:
        return None
    rise = known[second].smi_peak_bytes - known[first].smi_peak_bytes
    if rise <= 0:
        return None
    return first + (usable_bytes - known[first].smi_peak_bytes) * (second - first) // rise
