"""Predicted against measured, for every published and own row.

    python benchmarks/memory/compare.py
    python benchmarks/memory/compare.py --legacy-python ENV/bin/python   # the course's tables in the stack of late 2024
    python benchmarks/memory/compare.py --legacy-python ENV/bin/python --write docs/memory.md

Prints a line a row, then median and worst error of each table. Traces are cached: a second run takes seconds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CPU_ROWS = HERE / "results" / "cpu.jsonl"
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE)]

from page import page  # noqa: E402
from published import Row, config_of, published  # noqa: E402

from fitune.planning.scenario import Scenario  # noqa: E402


def own_rows() -> list[Row]:
    """Rows of results/*.jsonl that measure.py wrote on a GPU."""
    rows = []
    for path in sorted(set((HERE / "results").glob("*.jsonl")) - {CPU_ROWS}):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            if "error" in row or "oom" in row:
                continue
            scenario = Scenario.from_dict(row["scenario"])
            changed = {k: v for k, v in scenario.to_dict().items() if v != Scenario().to_dict()[k]}
            label = f"{row['model']}: " + ", ".join(f"{name} {value}" for name, value in changed.items())
            rows.append(
                Row(
                    f"own, {row['gpu']}",
                    label,
                    row["model"],
                    scenario,
                    tuple(row["capability"]),
                    row["allocated_peak_bytes"],
                    row["reserved_peak_bytes"],
                )
            )
    return rows


def answers(rows: list[Row], python: str) -> dict[str, dict[str, Any]]:
    """Question → prediction, each question once."""
    questions: dict[str, str] = {}
    for row in rows:
        questions[key(row)] = json.dumps(
            {"config": config_of(row.model), "scenario": row.scenario.to_dict(), "capability": row.capability}
        )
    done = subprocess.run(
        [python, "-W", "ignore", str(HERE / "trace_rows.py")],
        input="\n".join(questions.values()),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    return dict(zip(questions, map(json.loads, done.stdout.splitlines()), strict=True))


def key(row: Row) -> str:
    """Equal for equal questions."""
    return f"{row.model} {row.capability} {row.scenario.key()}"


def main() -> None:
    """Compare, print, and write the page of the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--legacy-python", help="Python of an environment of late 2024")
    parser.add_argument("--write", type=Path, help="write the page to this file")
    parser.add_argument("--only", default="", help="part of a table's name")
    options = parser.parse_args()
    rows = [row for row in [*published(), *own_rows()] if options.only in row.table]
    now = answers(rows, sys.executable)
    course = [row for row in rows if "bit" in row.table]
    then = answers(course, options.legacy_python) if options.legacy_python and course else {}
    stacks = [versions(sys.executable)] + ([versions(options.legacy_python)] if then else [])
    text = page([(row, now[key(row)], then.get(key(row))) for row in rows], stacks, datetime.date.today(), cpu_rows())
    print(text)
    if options.write:
        options.write.write_text(text)


def cpu_rows() -> list[dict[str, Any]]:
    """What cpu.py has written."""
    return [json.loads(line) for line in CPU_ROWS.read_text().splitlines()] if CPU_ROWS.exists() else []


def versions(python: str) -> str:
    """The packages that trace, in words."""
    code = (
        "import importlib.metadata as m, platform;"
        "print(', '.join(f'{n} {m.version(n)}' for n in ('torch', 'transformers', 'peft', 'bitsandbytes')),"
        "', Python', platform.python_version(), sep='')"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip().replace(", Python", ", Python ")


if __name__ == "__main__":
    main()
