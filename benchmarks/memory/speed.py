"""How long `fitune plan` takes: an 8B plan (32 layers) from nothing and from the cache, and a grid. Whole processes, by the clock.

    python benchmarks/memory/speed.py --out benchmarks/memory/results/speed.json

Cold is a first question with an empty cache of traces (what was installed is compiled to bytecode, as `make` leaves it).
Goals, on two cores: cold 10 s, cached 0.5 s, a grid of 48 trainable combinations 60 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from importlib import metadata
from pathlib import Path

CONFIGS = Path(__file__).parent / "configs"
PLAN = [
    str(CONFIGS / "llama-3.1-8b.json"), "--gpu", "RTX 4090", "--seq-len", "2048", "--model.quantization", "nf4",
    "--train.batch_size", "1",
]  # fmt: skip
GRID = [
    str(CONFIGS / "opt-350m.json"), "--grid", "--seq-len", "2000", "--gpu", "T4", "--train.batch_size", "1",
    "--data.eval_share", "0",
]  # fmt: skip

# As Python is by itself: it may keep the bytecode of fitune's own files, too.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def seconds(words: list[str], cache: str) -> float:
    """One run of the command."""
    start = time.perf_counter()
    done = subprocess.run(
        [str(Path(sys.executable).parent / "fitune"), "plan", *words, "--json"],
        env={**ENVIRONMENT, "FITUNE_CACHE": cache}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode not in (0, 3):  # 3: does not fit
        raise SystemExit(done.stderr)
    return time.perf_counter() - start


def main() -> None:
    """Print the figures; with --out write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    times: dict[str, list[float]] = {"cold": [], "cached": [], "grid": []}
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as cache:
            times["cold"].append(seconds(PLAN, cache))
            times["cached"].append(seconds(PLAN, cache))
            times["cached"].append(seconds(PLAN, cache))
    for _ in range(2):
        with tempfile.TemporaryDirectory() as cache:
            times["grid"].append(seconds(GRID, cache))
    result = {
        "date": date.today().isoformat(), "machine": platform.machine(), "cores": os.cpu_count(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers", "peft", "bitsandbytes")},
        "median_seconds": {name: round(statistics.median(values), 2) for name, values in times.items()},
        "seconds": {name: [round(value, 2) for value in values] for name, values in times.items()},
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if asked.out:
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
