"""Every run of the folder in a line, chains as one entry: what the first page shows.

In: the folder of runs. Out: `Entry`s, the newest first. Read anew only where a file changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fitune.errors import FituneError
from fitune.runs import manifest as manifests
from fitune.runs.run_folder import MANIFEST, METRICS, RunFolder
from fitune.studio.confine import is_plain_name
from fitune.studio.reading.metrics_index import last_row, sampled_rows

CHAIN = "chain.json"
SPARK_ROWS = 40
# What a method shows first, where its loss is not what one looks at.
FIRST_METRICS = ("reward", "loss")


@dataclass(frozen=True)
class Entry:
    """A run in a line. ``state`` is running, finished, interrupted, halted, failed, dead, elsewhere or damaged."""

    name: str
    state: str
    started: str = ""
    ended: str = ""
    method: str = ""
    tuning: str = ""
    model: str = ""
    data: str = ""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    spark: tuple[float, ...] = ()
    metric: str = ""
    before: float | None = None
    after: float | None = None
    error: str = ""
    stages: tuple[Entry, ...] = field(default=())


class RunList:
    """Entries of a folder, kept as long as their files are the same."""

    def __init__(self, root: Path):
        self.root = root
        self._facts: dict[str, tuple[tuple[float, int], manifests.Manifest]] = {}
        self._curves: dict[str, tuple[tuple[float, int], tuple[float, ...], dict[str, Any]]] = {}

    def entries(self) -> list[Entry]:
        """The newest first."""
        found = [self._entry_or_chain(path) for path in self._folders(self.root)]
        return sorted((one for one in found if one), key=lambda one: (one.started, one.name), reverse=True)

    def entry(self, path: Path) -> Entry:
        """One run's."""
        name = path.relative_to(self.root).as_posix()
        try:
            facts = self._manifest(path)
            return self._told(name, path, facts)
        except (FituneError, OSError) as error:
            return Entry(name=name, state="damaged", error=str(error))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return Entry(name=name, state="damaged", error=f"{path / MANIFEST} is damaged: {error!r}")

    def _entry_or_chain(self, path: Path) -> Entry | None:
        if (path / CHAIN).is_file():
            return self.chain(path)
        return self.entry(path) if (path / MANIFEST).is_file() else None

    def chain(self, path: Path) -> Entry:
        """A chain as one entry with its stages; step and steps count stages."""
        try:
            listed = [str(one["name"]) for one in json.loads((path / CHAIN).read_text(encoding="utf-8"))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return Entry(name=path.name, state="damaged", error=f"{path / CHAIN} is damaged: {error!r}")
        stages = tuple(
            self.entry(path / name) for name in listed if is_plain_name(name) and (path / name / MANIFEST).is_file()
        )
        waiting = len(stages) < len(listed)
        state = next((one.state for one in stages if one.state != "finished"), "interrupted" if waiting else "finished")
        last = stages[-1] if stages else Entry(name=path.name, state=state)
        return Entry(
            name=path.name,
            state=state,
            started=stages[0].started if stages else "",
            ended=last.ended,
            method=" → ".join(one.method for one in stages),
            tuning=last.tuning,
            model=stages[0].model if stages else "",
            data=last.data,
            step=len([one for one in stages if one.state == "finished"]),
            steps=len(listed),
            stages=stages,
        )

    def _manifest(self, path: Path) -> manifests.Manifest:
        found = (path / MANIFEST).stat()
        stamp, key = (found.st_mtime, found.st_size), str(path)
        if key not in self._facts or self._facts[key][0] != stamp:
            self._facts[key] = (stamp, manifests.read(path / MANIFEST))
        return self._facts[key][1]

    def _told(self, name: str, path: Path, facts: manifests.Manifest) -> Entry:
        spark, last = self._curve(path)
        results = facts.get("results", {})
        before, after = results.get("before") or {}, results.get("after") or {}
        metric = shown_metric(before, after)
        return Entry(
            name=name,
            state=state_of(path, facts),
            started=str(facts.get("started") or ""),
            ended=str(facts.get("ended") or ""),
            method=str(facts.get("method") or ""),
            tuning=str(facts.get("tuning") or ""),
            model=str(facts.get("model", {}).get("name") or ""),
            data=str(facts.get("data", {}).get("train") or ""),
            step=int(last.get("step", 0)),
            steps=_whole(facts.get("training", {}).get("steps")),
            loss=last.get("loss"),
            spark=spark,
            metric=metric,
            before=before.get(metric),
            after=after.get(metric),
            error=str(facts.get("error") or ""),
        )

    def _curve(self, path: Path) -> tuple[tuple[float, ...], dict[str, Any]]:
        """A few values of the first metric, and the last training row."""
        log = path / METRICS
        try:
            found = log.stat()
        except OSError:
            return (), {}
        stamp, key = (found.st_mtime, found.st_size), str(path)
        if key not in self._curves or self._curves[key][0] != stamp:
            rows = [row for row in sampled_rows(log, SPARK_ROWS) if row["kind"] == "train"]
            name = next((name for name in FIRST_METRICS if rows and isinstance(rows[-1].get(name), float)), "loss")
            values = tuple(float(row[name]) for row in rows if isinstance(row.get(name), int | float))
            self._curves[key] = (stamp, values, last_row(log, "train") or {})
        return self._curves[key][1:]

    @staticmethod
    def _folders(root: Path) -> Iterator[Path]:
        try:
            yield from (path for path in root.iterdir() if is_plain_name(path.name) and path.is_dir())
        except OSError:
            return


def state_of(path: Path, facts: manifests.Manifest) -> str:
    """The manifest's status; of a run that is said to be running, "dead" when its process is gone, and "elsewhere" when
    another machine's holds it."""
    status = str(facts["status"])
    if status != "running":
        return status
    writer = RunFolder(path).writer()
    return "dead" if writer is None else "elsewhere" if writer.elsewhere else "running"


def shown_metric(before: dict[str, float], after: dict[str, float]) -> str:
    """The score that stands for a run: that of its answers where there is one, else the loss."""
    names = list(after or before)
    judged = [name for name in names if name not in ("loss", "runtime", "samples_per_second", "steps_per_second")]
    return next(iter(judged), "loss" if "loss" in names else "")


def _whole(value: object) -> int:
    return value if isinstance(value, int) else 0
