"""Loss curves of one epoch of the demo's recipe: the same rows, order, seed and schedule on fitune's path or TRL's.

    python benchmarks/speed/epoch.py fitune --out ours.jsonl
    python benchmarks/speed/epoch.py trl --out theirs.jsonl
    python benchmarks/speed/epoch.py compare --out ours.jsonl theirs.jsonl --svg docs/epoch.svg --name epoch

What is noise: the peer against itself, its adapter begun with other random numbers.

    python benchmarks/speed/epoch.py trl --out again.jsonl --seed 1
    python benchmarks/speed/epoch.py compare --out again.jsonl theirs.jsonl --name noise

Each side writes a line a step, {"step", "loss", "cpu_seconds"}, as it goes, so an epoch that is cut short is a prefix.
With --name the comparison is put into results.json, from which page.py makes the page.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results.json"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))


def demo_epoch() -> tuple[list[list[Any]], Any, Any]:
    """The rows of each step in the demo's own order, the tokenizer, and the demo's settings."""
    from fitune.cli.demo import RECIPE
    from fitune.config.sections import Settings
    from fitune.trainers.sampler import epoch_order
    from fitune.training.setup import prepare_run

    settings = Settings.model_validate(RECIPE)
    setup = prepare_run(settings, fit=False)
    rows, size = setup.data.train, settings.train.batch_size
    ordered = [rows[index] for index in epoch_order(len(rows), settings.train.seed, 0)]
    return [ordered[start : start + size] for start in range(0, len(ordered), size)], setup.tokenizer, settings


class Writer:
    """A line for each step; takes what worker.Gate answers."""

    def __init__(self, path: Path):
        self.file = path.open("w", encoding="utf-8")
        self.step = 0

    def __call__(self, what: dict[str, Any]) -> None:
        self.step += 1
        line = {"step": self.step, "loss": float(what["loss"]), "cpu_seconds": round(what["cpu_seconds"], 3)}
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def train(kind: str, out: Path, seed: int | None) -> None:
    """One side's epoch; ``seed`` draws the adapter, the recipe's own if None."""
    import worker

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)

    class Free(worker.Gate):
        """Does not wait to be told."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start, self.cpu_start = time.perf_counter(), time.process_time()

    batches, tokenizer, settings = demo_epoch()
    recipe = worker.Recipe(
        learning_rate=settings.train.learning_rate or 2e-4, rank=settings.lora.rank, alpha=settings.lora.alpha,
        lr_scheduler=settings.train.lr_scheduler, warmup_ratio=settings.train.warmup_ratio,
        seed=settings.train.seed if seed is None else seed,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        make = worker.fitune_trainer if kind == "fitune" else worker.trl_trainer
        make(batches, tokenizer, Free(Writer(out)), folder, recipe).train()


def compare(first: Path, second: Path, svg: Path | None, name: str | None) -> None:
    """How far two curves lie apart, beside how much each moves from step to step."""
    ours, theirs = ([json.loads(line)["loss"] for line in path.read_text().splitlines()] for path in (first, second))
    steps = min(len(ours), len(theirs))
    gaps = [a - b for a, b in zip(ours, theirs, strict=False)]
    moves = [abs(b - a) for a, b in pairwise(theirs[:steps])]
    tail = slice(max(0, steps - 50), steps)
    result = {
        "steps": steps, "mean_gap": statistics.fmean(gaps), "median_absolute_gap": statistics.median(map(abs, gaps)),
        "largest_absolute_gap": max(map(abs, gaps)), "median_move_between_steps": statistics.median(moves),
        "last_50_steps": [statistics.fmean(ours[tail]), statistics.fmean(theirs[tail])],
        "picture": svg.name if svg else None, "date": date.today().isoformat(),
    }  # fmt: skip
    if name:
        data = json.loads(RESULTS.read_text())
        RESULTS.write_text(json.dumps({**data, name: result}, indent=1) + "\n")
    print(json.dumps(result, indent=1))
    if svg:
        svg.write_text(curves_svg(ours[:steps], theirs[:steps]))


def curves_svg(ours: list[float], theirs: list[float], width: int = 720, height: int = 320) -> str:
    """Both curves on top of each other."""
    left, top, bottom = 48, 16, 36
    high = max(*ours, *theirs) * 1.02

    def points(values: list[float]) -> str:
        step = (width - left - 12) / max(1, len(values) - 1)
        return " ".join(
            f"{left + index * step:.1f},{top + (height - top - bottom) * (1 - value / high):.1f}"
            for index, value in enumerate(values)
        )

    ticks = "".join(
        f'<text x="{left - 6}" y="{top + (height - top - bottom) * (1 - share) + 4:.0f}" text-anchor="end">'
        f"{high * share:.1f}</text>"
        for share in (0, 0.25, 0.5, 0.75, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{ticks}'
        f'<polyline fill="none" stroke="#d95f02" stroke-width="2.4" points="{points(theirs)}"/>'
        f'<polyline fill="none" stroke="#1b3a8f" stroke-width="1" points="{points(ours)}"/>'
        f'<text x="{width - 12}" y="{height - 10}" text-anchor="end">step {len(ours)}</text>'
        f'<text x="{left}" y="{height - 10}">loss of each step: '
        '<tspan fill="#1b3a8f">fitune</tspan> over <tspan fill="#d95f02">TRL</tspan></text></svg>\n'
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["fitune", "trl", "compare"])
    parser.add_argument("--out", type=Path, nargs="+", required=True)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--name", choices=["epoch", "noise"], help="where the comparison goes in results.json")
    parser.add_argument("--seed", type=int, help="draws the adapter; the recipe's own without it")
    args = parser.parse_args()
    if args.what == "compare":
        compare(*args.out, args.svg, args.name)
    else:
        train(args.what, args.out[0], args.seed)


if __name__ == "__main__":
    main()
