"""One run as it stands: its figures, charts, memory, answers and log, each a piece of HTML that may be sent again alone.

In: a run's folder and its index. Out: `RunPage`, and its pieces by their id on the page.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fitune.errors import FituneError
from fitune.runs import manifest as manifests
from fitune.runs.checkpoints import newest_complete, step_of
from fitune.runs.compare import memory_of
from fitune.runs.run_folder import MANIFEST, METRICS, SAMPLES
from fitune.studio.reading.answers import answered, rewarded
from fitune.studio.reading.metrics_index import Key, MetricsIndex
from fitune.studio.reading.run_list import Entry, RunList
from fitune.studio.starting.jobs import Jobs
from fitune.studio.templating import render
from fitune.web.charts import line_chart

PIECES = ("state", "actions", "figures", "charts", "memory", "answers", "log")
# What is looked at first; the rest follows by name.
ORDER: tuple[Key, ...] = (
    ("train", "loss"), ("eval", "loss"), ("train", "reward"), ("eval", "reward"), ("train", "kl"), ("train", "entropy"),
    ("train", "learning_rate"), ("train", "grad_norm"), ("train", "tokens_per_second"), ("train", "memory_bytes"),
)  # fmt: skip
TIMES = {"runtime", "samples_per_second", "steps_per_second"}
NAMES = {("train", "loss"): "loss", ("eval", "loss"): "held-out loss", ("train", "memory_bytes"): "memory, GiB"}
SECTIONS = ("model", "data", "results", "memory", "training", "parameters", "versions")
LOG_BYTES, LOG_LINES = 1 << 16, 60
GIB = 2**30


class RunPage:
    """What is told of one run. ``name`` is its name in addresses: RUN, or CHAIN/STAGE."""

    def __init__(self, name: str, path: Path, runs: RunList, index: MetricsIndex, jobs: Jobs, log: Path | None):
        self.name, self.path, self.runs, self.index, self.jobs, self.log = name, path, runs, index, jobs, log

    def entry(self) -> Entry:
        """The run in a line; one that has no folder yet by its job."""
        if self.jobs.get(self.name) and not (self.path / MANIFEST).exists():
            return self.jobs.entry(self.name)
        entry = self.runs.entry(self.path)
        if entry.state in ("dead", "interrupted", "halted", "failed") and self.jobs.state(self.name) == "starting":
            return replace(entry, state="starting")  # it is resumed: its process loads what it goes on with
        return entry

    def stamp(self) -> tuple[object, ...]:
        """Differs when a file of the run does, or its process is gone."""
        files = [self.path / MANIFEST, self.path / METRICS, self.path / SAMPLES, *([self.log] if self.log else [])]
        read = (self.index.lines, self.index.sample is None)
        return (self.entry(), self.jobs.asked(self.name), read, *(_stamp(file) for file in files))

    def pieces(self) -> dict[str, str]:
        """Id → HTML. A piece that has nothing to say is empty."""
        return self.pieces_of(self.values())

    def pieces_of(self, values: dict[str, Any]) -> dict[str, str]:
        """`pieces` from values that are there already."""
        return {name: render(f"run/{name}.html", name=self.name, **values) for name in PIECES}

    def values(self) -> dict[str, Any]:
        """What the templates read."""
        entry, facts = self.entry(), self.manifest()
        latest = self.index.latest.get("train", {})
        worst, best = rewarded(self.path / SAMPLES)
        checkpoint = newest_complete(self.path / "checkpoints")
        return {
            "run": entry,
            "asked": self.jobs.asked(self.name),
            "facts": facts,
            "latest": latest,
            "held_out": self.index.latest.get("eval", {}),
            "seconds_left": seconds_left(latest, entry),
            "charts": Markup("".join(charts_of(self.index))),
            "share_read": None if self.index.sample is None else self.index.share_read,
            "damaged_lines": self.index.damaged,
            "memory": memory_of(facts) if facts else {},
            "planned": (facts.get("memory", {}) if facts else {}),
            "answers": answered(self.path / SAMPLES),
            "worst": worst,
            "best": best,
            "log": tail(self.log) if self.log else None,
            "checkpoint": step_of(checkpoint) if checkpoint else None,
        }

    def manifest(self) -> Any:
        """The manifest, or nothing where it cannot be read: the page tells so by the run's state."""
        try:
            facts: dict[str, Any] = {**manifests.read(self.path / MANIFEST)}
        except (FituneError, OSError, TypeError):
            return {}
        for section in SECTIONS:
            if not isinstance(facts.get(section), dict):
                facts.pop(section, None)
        return facts


def ordered_keys(index: MetricsIndex) -> list[Key]:
    """What is drawn, in the order of a first look."""
    there = [key for key in index.shown if key[1] not in TIMES]
    return [*(key for key in ORDER if key in there), *sorted(key for key in there if key not in ORDER)]


def title_of(key: Key) -> str:
    """``held-out loss``, ``exact match, held out``."""
    kind, name = key
    words = name.replace("_", " ")
    return NAMES.get(key, words if kind == "train" else f"{words}, held out")


def charts_of(index: MetricsIndex) -> list[str]:
    """A chart for each number that was logged."""
    return [chart_of(index, key) for key in ordered_keys(index)]


def chart_of(index: MetricsIndex, key: Key, low: float | None = None, high: float | None = None) -> str:
    """The chart of one number, of some steps or of all."""
    line = index.line(key, "", low, high)
    if key[1] == "memory_bytes":
        line = type(line)(
            "", line.xs, [y / GIB for y in line.ys], [y / GIB for y in line.low], [y / GIB for y in line.high]
        )
    return line_chart([line], title_of(key), key=f"{key[0]}:{key[1]}")


def seconds_left(latest: dict[str, Any], entry: Entry) -> float | None:
    """Time of the steps that remain, at the mean pace so far; evaluations and checkpoints come on top."""
    steps, seconds = latest.get("step"), latest.get("seconds")
    if not isinstance(steps, int) or not isinstance(seconds, int | float) or steps <= 0 or not entry.steps:
        return None
    return max(0, entry.steps - steps) * seconds / steps


def tail(path: Path) -> str:
    """The last lines of a log; of a line that was drawn over (a progress bar) its last state."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.rpartition("\r")[2] for line in text.split("\n")]
    return "\n".join(lines[-LOG_LINES:]).strip("\n")


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)
