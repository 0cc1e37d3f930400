"""Tokens a second of two ranks with one thread each, over one process with one thread, on the CPU.

    python benchmarks/scaling.py --workloads a d --steps 12

Needs two idle cores and the built-in model. Workloads are those of benchmarks/speed; each is trained by `fitune train` as
a user would, once on one process and once with `--gpus 2`, and the tokens a second of its log are compared, the first
two steps left out. Losses must be equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent / "speed"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

import workloads

from fitune.models.source import resolve
from fitune.models.tokenizer import load_tokenizer

WARM_UP = 2
SOURCE = Path(__file__).resolve().parents[1] / "src"


def write_rows(workload: str, steps: int, path: Path) -> None:
    """The workload's texts as JSON Lines."""
    tokenizer = load_tokenizer(resolve(workloads.MODEL))
    with path.open("w", encoding="utf-8") as file:
        for example in workloads.examples_of(workload, steps, tokenizer):
            row = {"messages": list(example.messages)} if example.messages else {"text": example.text}
            file.write(json.dumps(row) + "\n")


def train(workload: str, rows: Path, ranks: int, folder: Path) -> list[dict[str, Any]]:
    """Log rows of the run's steps."""
    size = workloads.BATCH[workload]
    settings = {
        "fit": "off", "method": "lm" if workload == "d" else "sft", "model.device": "cpu", "model.precision": "fp32",
        "data.train": str(rows), "data.max_length": "512", "data.too_long": "cut", "data.eval_share": "0", "eval.samples": "0",
        "train.batch_size": str(size),
        "run.folder": str(folder), "run.name": f"{workload}-{ranks}",
    }  # fmt: skip
    words = [word for key, value in settings.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "fitune.cli", "train", *words, "--gpus", str(ranks)]
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    subprocess.run(command, check=True, env={**os.environ, **threads}, stdout=subprocess.DEVNULL, timeout=1800)
    text = (folder / f"{workload}-{ranks}" / "metrics.jsonl").read_text(encoding="utf-8")
    return [row for row in map(json.loads, text.splitlines()) if row["kind"] == "train"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", default=["a", "d"], choices=sorted(workloads.BATCH))
    parser.add_argument("--steps", type=int, default=12)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for workload in asked.workloads:
            rows = folder / f"{workload}.jsonl"
            write_rows(workload, asked.steps, rows)
            one, two = (train(workload, rows, ranks, folder) for ranks in (1, 2))
            speeds = [statistics.median(row["tokens_per_second"] for row in run[WARM_UP:]) for run in (one, two)]
            apart = max(abs(mine["loss"] - theirs["loss"]) for mine, theirs in zip(one, two, strict=True))
            print(
                f"{workload}: {speeds[0]:,.0f} tokens/s on one process, {speeds[1]:,.0f} on two ranks: "
                f"{speeds[1] / speeds[0]:.2f}×; losses differ by {apart:.1e} at most"
            )


if __name__ == "__main__":
    main()
