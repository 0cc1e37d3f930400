"""Rows scored by a model against a rubric."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from fitune.data.read.files import read_rows, replace_jsonl
from fitune.errors import DataError
from fitune.teacher.row_tasks import Asker, Rejected, draw_of
from fitune.teacher.seeds import prompt_of
from fitune.teacher.teacher import BudgetSpent

ANSWERS = ("completion", "output", "answer", "response", "chosen")


@dataclass(frozen=True)
class JudgedRows:
    """How many rows were kept of how many; `unjudged` got no score and are kept only where no least score is asked."""

    rows: int
    kept: int
    unjudged: int
    mean: float
    stopped: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


def judge(
    asker: Asker, file: Path, out: Path, least: float | None, concurrency: int, tell: Callable[[int, int], None]
) -> JudgedRows:
    """Write the rows with `score` and `reason`.

    Raises:
        DataError: a row without a prompt or an answer.
        ModelError: the model cannot be asked.
    """
    rows = read_rows(str(file))
    asked: list[tuple[dict[str, Any], str, str]] = []
    for row, number in zip(rows.rows, rows.numbers, strict=True):
        prompt, answer = prompt_of(row), _answer_of(row)
        if not prompt or not answer:
            raise DataError(f"{file}, row {number} has no {'prompt' if not prompt else 'answer'} to judge")
        asked.append((dict(row), prompt, answer))
    scored: list[dict[str, Any]] = []
    stopped: str | None = None
    with ThreadPoolExecutor(concurrency) as pool:
        found = pool.map(lambda at: _score(asker, at, *asked[at][1:]), range(len(asked)))
        try:
            for done, (score, (row, _, _)) in enumerate(zip(found, asked, strict=True), start=1):
                scored.append({**row, "score": score and score[0], "reason": score and score[1]})
                tell(done, len(asked))
        except BudgetSpent as spent:
            stopped = f"the budget: {spent}"
    kept = [row for row in scored if least is None or (row["score"] or 0) >= least]
    replace_jsonl(kept, out)
    scores = [row["score"] for row in scored if row["score"] is not None]
    return JudgedRows(
        rows=len(scored), kept=len(kept), unjudged=len(scored) - len(scores), mean=mean(scores) if scores else 0.0, stopped=stopped
    )  # fmt: skip


def _score(asker: Asker, place: int, prompt: str, answer: str) -> tuple[float, str] | None:
    for attempt in range(3):
        try:
            return asker.score(prompt, answer, draw_of(asker.seed, place, attempt))
        except Rejected:
            continue
    return None


def _answer_of(row: Mapping[str, Any]) -> str:
    for message in reversed(list[Any](row.get("messages") or row.get("conversations") or ())):
        if isinstance(message, dict) and message.get("role", message.get("from")) in ("assistant", "gpt"):
            return str(message.get("content", message.get("value")) or "").strip()
    return next((str(row[column]).strip() for column in ANSWERS if row.get(column)), "")
