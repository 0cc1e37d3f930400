"""metrics.jsonl read as it grows: every number as a `Series`, and where to find its rows again.

In: the file's path. Out: series by (kind, name), the number of lines, rows of a range of steps.
Reads in slices, so that a file of a million lines never holds the server up; until it is read, an even sample of its lines
stands for it. A file that became shorter or another one (a resumed run drops rows) is read anew.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fitune.studio.reading.series import Series, line_of
from fitune.web.charts import Line

Key = tuple[str, str]
SLICE_BYTES = 1 << 18
EVERY_LINES = 512
SAMPLED_BYTES = 4 << 20  # above it a sample is shown first
SAMPLE_ROWS = 600
EXACT_ROWS = 4096
MOST_SERIES = 200
NOT_DRAWN = {"step", "kind", "epoch", "tokens", "seconds"}


class MetricsIndex:
    """The rows of one run."""

    def __init__(self, path: Path):
        self.path = path
        self.inode = -1
        self._forget()

    def _forget(self) -> None:
        self.offset = 0
        self.lines = 0
        self.damaged = 0
        self.series: dict[Key, Series] = {}
        self.sample: dict[Key, Series] | None = None
        self.latest: dict[str, dict[str, Any]] = {}
        self._offsets, self._steps = array("q"), array("d")

    @property
    def shown(self) -> dict[Key, Series]:
        """Series to draw: the sample's until the file was read once."""
        return self.series if self.sample is None else self.sample

    def advance(self, slices: int = 8) -> bool:
        """Read on; True when the end of what is there was reached."""
        try:
            found = self.path.stat()
        except OSError:
            if self.offset:
                self._forget()
            return True
        if found.st_ino != self.inode or found.st_size < self.offset:
            self._forget()
            self.inode = found.st_ino
            if found.st_size > SAMPLED_BYTES:
                self._take_sample()
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for _ in range(slices):
                if not self._read_slice(file.read(SLICE_BYTES)):
                    self.sample = None
                    return True
                file.seek(self.offset)
        return False

    @property
    def share_read(self) -> float:
        """How much of the file was read, 0 to 1."""
        try:
            return min(1.0, self.offset / max(self.path.stat().st_size, 1))
        except OSError:
            return 1.0

    def _read_slice(self, piece: bytes) -> bool:
        """Take the whole lines of a piece of the file; False at the end. A line without its end is left for later."""
        end = piece.rfind(b"\n") + 1
        if end == 0:
            if len(piece) < SLICE_BYTES:
                return False
            self.offset += len(piece)  # one line longer than a slice holds no row of ours
            self.damaged += 1
            return True
        at = self.offset
        for line in piece[:end].splitlines():
            self._take(line, at)
            at += len(line) + 1
        self.offset += end
        return len(piece) == SLICE_BYTES

    def _take(self, line: bytes, at: int) -> None:
        row = _row(line)
        self.lines += 1
        if row is None:
            self.damaged += 1
            return
        if (self.lines - 1) % EVERY_LINES == 0:
            self._offsets.append(at)
            self._steps.append(row["step"])
        kind = row["kind"]
        if self.sample is None or row["step"] >= self.latest.get(kind, row)["step"]:  # a sample knows the end already
            self.latest[kind] = row
        _add(self.series, row)

    def _take_sample(self) -> None:
        self.sample = {}
        for row in sampled_rows(self.path, SAMPLE_ROWS):
            _add(self.sample, row)
            self.latest[row["kind"]] = row
        last = last_row(self.path, "train")
        if last is not None:
            self.latest["train"] = last

    def line(self, key: Key, label: str, low: float | None = None, high: float | None = None) -> Line:
        """One number as a curve; of a range of steps as exact as the file allows."""
        if low is None or high is None or key not in self.shown:
            return self.shown[key].line(label) if key in self.shown else Line(label=label, xs=[], ys=[])
        if self.shown[key].size == 1:
            whole = self.shown[key].line(label)
            a, b = bisect_left(whole.xs, low), bisect_right(whole.xs, high)
            return Line(label=label, xs=whole.xs[a:b], ys=whole.ys[a:b])
        kind, name = key
        rows = (row for row in self._rows(low, high) if row["kind"] == kind)
        return line_of([(row["step"], row[name]) for row in rows if _is_number(row.get(name))], label)

    def _rows(self, low: float, high: float) -> Iterator[dict[str, Any]]:
        """Rows of the steps between two: all of them when they are few, else an even sample."""
        first = max(bisect_right(self._steps, low) - 1, 0)
        last = bisect_right(self._steps, high)
        start = self._offsets[first] if self._offsets else 0
        end = self._offsets[last] if last < len(self._offsets) else self.path.stat().st_size
        if (last - first) * EVERY_LINES > EXACT_ROWS:
            rows = iter(sampled_rows(self.path, EXACT_ROWS, start, end))
        else:
            with self.path.open("rb") as file:
                file.seek(start)
                lines = file.read(end - start).splitlines()
            rows = (row for row in map(_row, lines) if row is not None)
        return (row for row in rows if low <= row["step"] <= high)


def sampled_rows(path: Path, count: int, start: int = 0, end: int | None = None) -> list[dict[str, Any]]:
    """So many rows at even places of a file; all of them when the file is small."""
    try:
        size = path.stat().st_size
        end = size if end is None else min(end, size)
        with path.open("rb") as file:
            if end - start <= count * 400:
                file.seek(start)
                lines = file.read(end - start).splitlines()
                lines = lines[:: max(1, len(lines) // count)]
            else:
                lines = [_line_after(file, start + place * (end - start) // count) for place in range(count)]
    except OSError:
        return []
    return [row for row in map(_row, lines) if row is not None]


def last_row(path: Path, kind: str) -> dict[str, Any] | None:
    """The last whole row of a kind among the last 64 KiB."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - (1 << 16)))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        row = _row(line)
        if row is not None and row["kind"] == kind:
            return row
    return None


def _line_after(file: Any, at: int) -> bytes:
    file.seek(at)
    if at:
        file.readline()
    return file.readline()


def _row(line: bytes) -> dict[str, Any] | None:
    """A row of the log, or None for a line that was cut short or is no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not _is_number(row.get("step")) or not isinstance(row.get("kind"), str):
        return None
    return row


def _add(series: dict[Key, Series], row: dict[str, Any]) -> None:
    step, kind = row["step"], row["kind"]
    for name, value in row.items():
        if name not in NOT_DRAWN and _is_number(value):
            key = (kind, name)
            if key not in series:
                if len(series) >= MOST_SERIES:
                    continue
                series[key] = Series()
            series[key].add(step, value)


def _is_number(value: object) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond any float
        return False
