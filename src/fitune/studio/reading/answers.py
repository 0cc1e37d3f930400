"""samples.jsonl as it is looked at: held-out prompts before, now and wanted; the worst and best of what was rewarded.

In: the file's path. Out: `Asked` and `Rewarded` rows. Of a large file the beginning and the end are read.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEAD_BYTES, TAIL_BYTES = 1 << 20, 3 << 20
MOST_PROMPTS, MOST_ROLLOUTS, ROLLOUT_STEPS = 50, 6, 10


@dataclass(frozen=True)
class Asked:
    """A held-out prompt. step: that of the answer now."""

    row: int
    asked: str
    before: str
    now: str
    wanted: str
    step: int
    stopped: bool


@dataclass(frozen=True)
class Rewarded:
    """An answer of a training step and what it earned."""

    step: int
    asked: str
    answer: str
    wanted: str
    reward: float
    rewards: dict[str, float]


def answered(path: Path) -> list[Asked]:
    """The held-out prompts in their order, each with its answers before training and last."""
    before: dict[int, dict[str, Any]] = {}
    now: dict[int, dict[str, Any]] = {}
    for row in _rows(path):
        if row.get("moment") == "before":
            before.setdefault(row["row"], row)
        elif row.get("moment") in ("during", "after"):
            now[row["row"]] = row
    found: list[Asked] = []
    for number in [*before, *(number for number in now if number not in before)][:MOST_PROMPTS]:
        last = now.get(number)
        one = last or before[number]
        was = str(before[number].get("answer", "")) if number in before else ""
        is_now = str(last.get("answer", "")) if last else ""
        found.append(
            Asked(
                row=number,
                asked=str(one.get("asked", "")),
                before=was,
                now=is_now,
                wanted=str(one.get("wanted", "")),
                step=int(one.get("step", 0)),
                stopped=bool(one.get("stopped", True)),
            )
        )
    return found


def rewarded(path: Path) -> tuple[list[Rewarded], list[Rewarded]]:
    """(the worst, the best) answers of the last steps."""
    rows = [row for row in _rows(path) if row.get("moment") == "rollout" and isinstance(row.get("reward"), int | float)]
    steps = sorted({row.get("step", 0) for row in rows})[-ROLLOUT_STEPS:]
    latest = sorted((row for row in rows if row.get("step", 0) in steps), key=lambda row: row["reward"])
    found = [
        Rewarded(
            step=int(row.get("step", 0)),
            asked=str(row.get("asked", "")),
            answer=str(row.get("answer", "")),
            wanted=str(row.get("wanted", "")),
            reward=float(row["reward"]),
            rewards=row["rewards"] if isinstance(row.get("rewards"), dict) else {},
        )
        for row in latest
    ]
    return found[:MOST_ROLLOUTS], found[::-1][:MOST_ROLLOUTS]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            if size > HEAD_BYTES:
                file.seek(max(HEAD_BYTES, size - TAIL_BYTES))
                head = head[: head.rfind(b"\n") + 1] + file.read()
    except OSError:
        return []
    rows: list[dict[str, Any]] = []
    for line in head.splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and isinstance(row.get("row"), int):
            rows.append(row)
    return rows
