"""Rows by a task, several at once: resumed to the answer, checked, without near duplicates, each with its origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from fitune.data.read.files import replace_jsonl
from fitune.errors import DataError
from fitune.teacher.near_duplicates import NearDuplicates
from fitune.teacher.row_tasks import Asker, Rejected, Row, Source, Task, draw_of
from fitune.teacher.teacher import BudgetSpent

ATTEMPTS = 5
Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class MadeRows:
    """What came of it. `rejected` counts reasons; `stopped` says why there are fewer rows than were wanted."""

    rows: int
    rejected: dict[str, int]
    asked: int
    from_journal: int
    prompt_tokens: int
    new_tokens: int
    cost: float
    stopped: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain values."""
        return asdict(self)


@dataclass
class RowMaker:
    """Makes `count` rows.

    Rows are taken in the order of their places, whatever order answers come in, so that the same command gives the same
    file, killed in between or not.

    Args:
        known: texts that no prompt may repeat: the seeds', and those of a test set.
        concurrency: questions at once.
    """

    task: Task
    asker: Asker
    sources: Sequence[Source]
    known: Sequence[str] = ()
    concurrency: int = 4
    rejected: Counter[str] = field(default_factory=Counter)

    def make(self, count: int, out: Path, tell: Tell = lambda done, all_: None) -> MadeRows:
        """Write the rows; what was made when the budget is spent is written as well.

        Raises:
            DataError: no sources.
            ModelError: the teacher cannot be asked.
        """
        if not self.sources:
            raise DataError("there is nothing to make rows from")
        count = min(count, len(self.sources)) if self.task.once else count
        seen = NearDuplicates(self.known)
        rows: list[Row] = []
        stopped: str | None = None
        places = len(self.sources) if self.task.once else count * ATTEMPTS
        with ThreadPoolExecutor(self.concurrency) as pool:
            waiting: list[Future[Row | None]] = []
            try:
                places_left = iter(range(places))
                while len(rows) < count:
                    for place in islice(places_left, min(self.concurrency - len(waiting), count - len(rows))):
                        waiting.append(pool.submit(self._at, place))
                    if not waiting:
                        break
                    self._take(waiting.pop(0).result(), seen, rows)
                    tell(len(rows), count)
            except BudgetSpent as spent:
                stopped = f"the budget: {spent}"
                for future in waiting:
                    future.cancel()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if len(rows) < count and stopped is None:
            stopped = f"{places:,} attempts gave no more rows"
        replace_jsonl(rows, out)
        return self._made(len(rows), stopped)

    def _at(self, place: int) -> Row | None:
        """The row of a place; None when every attempt was rejected."""
        for attempt in range(ATTEMPTS):
            draw = draw_of(self.asker.seed, place, attempt)
            try:
                row = self.task.make(self.asker, self.sources, place, draw)
            except Rejected as reason:
                self.rejected[str(reason)] += 1
                continue
            return {**row, "task": self.task.name, "teacher": self.asker.teacher.model, "draw": draw}
        return None

    def _take(self, row: Row | None, seen: NearDuplicates, rows: list[Row]) -> None:
        if row is None:
            return
        if not self.task.once:  # given prompts are taken as they are
            # Two documents may ask for the same, and answer it differently.
            text = f"{row['prompt']} {row['source']}" if self.task.reads_documents else str(row["prompt"])
            if seen.has(text):
                self.rejected["nearly the same prompt as another's"] += 1
                return
            seen.add(text)
        rows.append(row)

    def _made(self, rows: int, stopped: str | None) -> MadeRows:
        spent = self.asker.teacher.spent
        return MadeRows(
            rows=rows,
            rejected=dict(self.rejected),
            asked=spent.asked,
            from_journal=spent.from_journal,
            prompt_tokens=spent.prompt_tokens,
            new_tokens=spent.new_tokens,
            cost=spent.cost(self.asker.teacher.budget),
            stopped=stopped,
        )
