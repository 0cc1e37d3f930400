"""Rows that stay in their file and are read when asked for, so that a file may be larger than the memory.

In: where rows lie in a file. Out: sequences of rows, as the readers of formats give them for small files too.
"""

from __future__ import annotations

import codecs
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import IO, TypeVar, cast, overload

from fitune.data.read.json_text import loads

Row = Mapping[str, object]
Item = TypeVar("Item")
AT_ONCE = 1_000  # rows of a table that are turned at one time


class Lazy(Sequence[Item]):
    """A sequence whose items are made one by one, each time anew."""

    def item(self, place: int) -> Item:
        """The item at a place from 0."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        places = range(len(self))[index]
        return [self.item(place) for place in places] if isinstance(places, range) else self.item(places)

    def __iter__(self) -> Iterator[Item]:
        return map(self.item, range(len(self)))


class LineRows(Lazy[Row]):
    """Rows of a file of JSON Lines.

    Args:
        file: stays open as long as its rows are there.
        starts, stops: places in the file where each row's line begins and ends.
    """

    def __init__(self, file: IO[bytes], starts: Sequence[int], stops: Sequence[int]):
        self._file, self._starts, self._stops = file, starts, stops

    def __del__(self) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._starts)

    def item(self, place: int) -> Row:
        """The row that a line holds."""
        start = self._starts[place]
        line = os.pread(self._file.fileno(), self._stops[place] - start, start)
        return cast(Row, loads(line.removeprefix(codecs.BOM_UTF8).decode().rstrip("\r\n")))


class PartRows(Lazy[Row]):
    """Rows of a table that is read part by part.

    Args:
        read: (part, first row in it, number of rows) → these rows.
        counts: rows of each part.
    """

    def __init__(self, read: Callable[[int, int, int], list[Row]], counts: Sequence[int]):
        self._read, self._ends = read, list(accumulate(counts))
        self._held: tuple[int, list[Row]] = (0, [])

    def __len__(self) -> int:
        return self._ends[-1]

    def item(self, place: int) -> Row:
        """The row; its neighbours are kept until one further away is asked for."""
        first, rows = self._held
        if not first <= place < first + len(rows):
            part = bisect_right(self._ends, place)
            before = self._ends[part - 1] if part else 0
            local = (place - before) // AT_ONCE * AT_ONCE
            first, rows = self._held = before + local, self._read(part, local, AT_ONCE)
        return rows[place - first]


class Chosen(Lazy[Item]):
    """Some items of a sequence, in a given order."""

    def __init__(self, items: Sequence[Item], places: Sequence[int]):
        self._items, self._places = items, places

    def __len__(self) -> int:
        return len(self._places)

    def item(self, place: int) -> Item:
        """The item."""
        return self._items[self._places[place]]


class Chain(Lazy[Item]):
    """Several sequences behind each other."""

    def __init__(self, parts: Sequence[Sequence[Item]]):
        self._parts, self._ends = parts, list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    def item(self, place: int) -> Item:
        """The item."""
        part = bisect_right(self._ends, place)
        return self._parts[part][place - (self._ends[part - 1] if part else 0)]


def joined_rows(parts: Sequence[Sequence[Row]]) -> Sequence[Row]:
    """Rows behind each other, as a tuple where all parts are in memory."""
    if any(isinstance(part, Lazy) for part in parts):
        return Chain(parts)
    return tuple(row for part in parts for row in part)


def chosen_rows(rows: Sequence[Row], places: Sequence[int]) -> Sequence[Row]:
    """Some of the rows, as a tuple where all are in memory."""
    return Chosen(rows, places) if isinstance(rows, Lazy) else tuple(rows[place] for place in places)
