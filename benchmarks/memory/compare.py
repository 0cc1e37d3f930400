"""Predicted against measured, for every published and own row.

    python benchmarks/memory/compare.py
    python benchmarks/memory/compare.py --legacy-python ENV/bin/python   # the course's tables in the stack of late 2024
    python benchmarks/memory/compare.py --write docs/memory-accuracy.md

Prints a line a row, then median and worst error of each table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE)]

from published import Row, config_of, published  # noqa: E402

from fitune.plan.scenario import Scenario  # noqa: E402


def own_rows() -> list[Row]:
    """Rows of results/*.jsonl."""
    rows = []
    for path in sorted((HERE / "results").glob("*.jsonl")):
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


def percent(predicted: float | None, measured: float | None) -> float | None:
    """Error of a prediction in percent."""
    return None if not predicted or not measured else 100 * (predicted / measured - 1)


def shown(value: float | None) -> str:
    """A signed percentage or nothing."""
    return "" if value is None else f"{value:+.1f} %"


def table(rows: list[Row], now: dict, then: dict) -> tuple[list[str], dict[str, list[float]]]:
    """Markdown lines, and errors by kind."""
    text = [
        "| row | measured MB | predicted MB | error | 2024 stack | error | reserved error |",
        "|---|---|---|---|---|---|---|",
    ]
    errors: dict[str, list[float]] = {}
    for row in rows:
        answer, old = now.get(key(row), {}), then.get(key(row), {})
        measured = "out of memory" if row.allocated_bytes is None else f"{row.allocated_bytes / 1e6:.0f}"
        error, old_error = (percent(a.get("allocated"), row.allocated_bytes) for a in (answer, old))
        reserved = percent(answer.get("reserved"), row.reserved_bytes)
        for name, value in (
            ("allocated", error),
            ("allocated, 2024 stack", old_error),
            ("reserved", reserved),
            ("allocated, all settings stated", error if row.stated else None),
            ("allocated, all settings stated, 2024 stack", old_error if row.stated else None),
        ):
            if value is not None:
                errors.setdefault(name, []).append(value)
        cells = [
            row.label,
            measured,
            mb(answer),
            shown(error),
            mb(old) if then else "",
            shown(old_error),
            shown(reserved),
        ]
        text.append("| " + " | ".join(cells) + " |")
    return text, errors


def mb(answer: dict[str, Any]) -> str:
    """Allocated MB, or why there is none."""
    return f"{answer['allocated'] / 1e6:.0f}" if "allocated" in answer else answer.get("error", "")[:60]


def main() -> None:
    """Compare, print, and write the table of the docs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--legacy-python", help="Python of an environment of late 2024")
    parser.add_argument("--write", type=Path, help="write the tables to this file")
    parser.add_argument("--only", default="", help="part of a table's name")
    options = parser.parse_args()
    rows = [row for row in [*published(), *own_rows()] if options.only in row.table]
    now = answers(rows, sys.executable)
    course = [row for row in rows if "bit" in row.table]
    then = answers(course, options.legacy_python) if options.legacy_python and course else {}
    text = []
    for name in dict.fromkeys(row.table for row in rows):
        lines, errors = table([row for row in rows if row.table == name], now, then if "bit" in name else {})
        text += [f"\n## {name}\n", *lines, ""]
        for kind, values in errors.items():
            sizes = [abs(value) for value in values]
            text.append(
                f"- {kind}: median {statistics.median(sizes):.2f} %, worst {max(values, key=abs):+.1f} %, {len(sizes)} rows"
            )
    print("\n".join(text))
    if options.write:
        options.write.write_text("\n".join(text).lstrip() + "\n")


if __name__ == "__main__":
    main()
