"""What a running studio holds: its folders, the list of runs, indexes of the runs that are looked at.

Nothing here is the truth: all of it can be read again from the run folders.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from pathlib import Path

from fitune.runs.run_folder import METRICS
from fitune.studio.confine import Folders
from fitune.studio.reading.metrics_index import MetricsIndex
from fitune.studio.reading.run_list import CHAIN, Entry, RunList
from fitune.studio.reading.run_page import RunPage
from fitune.studio.starting.chat_child import ChatChild
from fitune.studio.starting.child_command import Children
from fitune.studio.starting.jobs import Jobs

MOST_INDEXES = 12
FIRST_LOOK_SLICES = 8  # 2 MiB: read before the first paint; the rest follows while the page is open


class Studio:
    """Handed to every view."""

    def __init__(self, folders: Folders):
        self.folders = folders
        self.runs = RunList(folders.runs)
        self.jobs = Jobs(folders.runs, folders.own)
        self.children = Children()
        self.chat = ChatChild()
        self._indexes: OrderedDict[Path, MetricsIndex] = OrderedDict()
        self._reading: dict[Path, asyncio.Task[None]] = {}

    def run_page(self, name: str) -> RunPage:
        """A run to look at; its log is read on in the background until it is whole.

        Raises:
            Refused: there is no such run.
        """
        path = self.folders.place(name) if self.jobs.get(name) else self.folders.run(name)
        return RunPage(name, path, self.runs, self.index(path), self.jobs, self.log_of(name))

    def entries(self) -> list[Entry]:
        """Every run in a line, the newest first; those that wait to begin before them."""
        return [*self.jobs.waiting(), *self.runs.entries()]

    def chain(self, name: str) -> Entry | None:
        """A chain by its name; None when there is none of that name."""
        path = self.folders.place(name)
        return self.runs.chain(path) if (path / CHAIN).is_file() else None

    def index(self, path: Path) -> MetricsIndex:
        """The index of a run's metrics, with the beginning read; the least looked at are forgotten."""
        if path not in self._indexes:
            self._indexes[path] = MetricsIndex(path / METRICS)
            while len(self._indexes) > MOST_INDEXES:
                self._indexes.popitem(last=False)
        self._indexes.move_to_end(path)
        index = self._indexes[path]
        if path not in self._reading and not index.advance(FIRST_LOOK_SLICES):
            self._reading[path] = asyncio.get_running_loop().create_task(self._read_on(path, index))
        return index

    def log_of(self, name: str) -> Path | None:
        """What a run that was started here, alone or with its chain, has written to its terminal."""
        logs = (self.jobs.log(name), self.jobs.log(name.split("/")[0]))
        return next((path for path in logs if path.is_file()), None)

    async def _read_on(self, path: Path, index: MetricsIndex) -> None:
        """Read slice by slice, and let every other request in between."""
        try:
            while not index.advance(1):
                await asyncio.sleep(0.002)
        finally:
            del self._reading[path]
