"""A logged number over the steps, in constant memory.

In: (step, value) one by one. Out: at most `CAPACITY` buckets in order, each with its first step, lowest, highest and mean.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from fitune.web.charts import Line

CAPACITY = 1024


class Series:
    """Buckets of neighbouring values. When they are full, each two become one, so a bucket holds 1, 2, 4, … values."""

    def __init__(self) -> None:
        self.steps, self.low, self.high, self.total, self.count = (array("d") for _ in range(5))
        self.size = 1
        self.last = float("nan")

    def add(self, step: float, value: float) -> None:
        """Append a value."""
        self.last = value
        if self.steps and self.count[-1] < self.size:
            self.low[-1] = min(self.low[-1], value)
            self.high[-1] = max(self.high[-1], value)
            self.total[-1] += value
            self.count[-1] += 1
            return
        if len(self.steps) >= CAPACITY:
            self._halve()
        for column, one in (
            (self.steps, step), (self.low, value), (self.high, value), (self.total, value), (self.count, 1.0),
        ):  # fmt: skip
            column.append(one)

    def _halve(self) -> None:
        self.size *= 2
        pairs = range(0, len(self.steps) - 1, 2)
        self.steps = array("d", self.steps[::2])
        self.low = array("d", [min(self.low[at], self.low[at + 1]) for at in pairs])
        self.high = array("d", [max(self.high[at], self.high[at + 1]) for at in pairs])
        self.total = array("d", [self.total[at] + self.total[at + 1] for at in pairs])
        self.count = array("d", [self.count[at] + self.count[at + 1] for at in pairs])

    def line(self, label: str) -> Line:
        """The series as a curve of means, bounded by the lowest and highest where values were drawn together."""
        means = [total / count for total, count in zip(self.total, self.count, strict=True)]
        if self.size == 1:
            return Line(label=label, xs=list(self.steps), ys=means)
        return Line(label=label, xs=list(self.steps), ys=means, low=list(self.low), high=list(self.high))

    def __len__(self) -> int:
        return len(self.steps)


def line_of(points: Sequence[tuple[float, float]], label: str) -> Line:
    """Points as a curve, thinned like a `Series` when there are more."""
    series = Series()
    for step, value in points:
        series.add(step, value)
    return series.line(label)
