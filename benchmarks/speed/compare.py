"""Training speed on a CPU, side by side: fitune against TRL's SFTTrainer, the same rows, alternating step by step.

    python benchmarks/speed/compare.py --workloads a b c d e f --steps 8
    python benchmarks/speed/page.py benchmarks/speed/results.json

Each side runs in a process of its own and is told to take one step, then the other, so both see the same machine.
Reported: the median over steps of their seconds / our seconds, useful tokens/s (every row's tokens, counted once for
each row), peak resident memory while training, the greatest difference of the losses, and the floor (floor.py), timed
between the steps. The first two steps warm up and are left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[1] / "src"))

from page import table  # noqa: E402

GROUPS = {
    "matrix products": ("mm", "addmm", "bmm", "linear", "baddbmm", "addmm_"),
    "softmax, loss": ("_softmax", "_log_softmax", "_softmax_backward_data", "exp_", "logsumexp"),
    "activation": ("silu", "silu_backward", "gelu", "gelu_backward"),
    "copies, casts, gathers": (
        "copy_", "_to_copy", "index_select", "index_add_", "index_copy_", "cat", "clone", "contiguous", "fill_", "zero_",
    ),
    "elementwise": ("mul", "mul_", "add", "add_", "sub", "sub_", "div", "pow", "rsqrt", "mean", "sum", "neg", "neg_"),
    "optimizer": ("_fused_adamw_", "_foreach_norm", "_foreach_mul_"),
}  # fmt: skip


class Side:
    """One worker process."""

    def __init__(self, kind: str, workload: str, steps: int, threads: int, profile: bool = False):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, str(HERE / "worker.py"), kind, workload, str(steps), str(threads)]
        self.process = subprocess.Popen(
            command + ["--profile"] * profile, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=environment,
        )  # fmt: skip
        self.hear()

    def hear(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self.process.args))} ended early; run it by hand to see why")
        return json.loads(line)

    def step(self) -> dict[str, Any]:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.hear()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=120)


def compare(workload: str, steps: int, threads: int, warm: int) -> dict[str, Any]:
    """Both sides over one workload."""
    import floor
    import torch
    import workloads
    from transformers import AutoConfig

    from fitune.data.packing.bins import pack_rows
    from fitune.models.builtin import fetch

    torch.set_num_threads(threads)
    batches, _ = workloads.rows_of(workload, steps)
    config = AutoConfig.from_pretrained(fetch(workloads.MODEL))
    ours, theirs = Side("fitune", workload, steps, threads), Side("trl", workload, steps, threads)
    ours_steps, theirs_steps, floors = [], [], []
    for number in range(steps):
        first, second = (ours, theirs) if number % 2 else (theirs, ours)
        answers = {id(first): first.step(), id(second): second.step()}
        ours_steps.append(answers[id(ours)])
        theirs_steps.append(answers[id(theirs)])
        floors.append(floor.floor_seconds(batches[number], config, repeats=2))
    ours.end()
    theirs.end()
    useful = [sum(len(row.input_ids) for row in rows) for rows in batches]
    computed = [sum(tree.num_nodes for tree in pack_rows(rows, 10**9)) for rows in batches]
    kept = range(warm, steps)
    middle = statistics.median
    return {
        "workload": workload,
        "rows_a_step": len(batches[0]),
        "tokens_a_row": round(sum(useful) / steps / len(batches[0]), 1),
        "computed_share": round(sum(computed) / sum(useful), 3),
        "speedup": round(middle(theirs_steps[i]["seconds"] / ours_steps[i]["seconds"] for i in kept), 2),
        # On a machine that is not quiet, and with one thread, this is the fairer ratio: waiting is not counted.
        "cpu_time_ratio": round(middle(theirs_steps[i]["cpu_seconds"] / ours_steps[i]["cpu_seconds"] for i in kept), 2),
        "fitune_tokens_per_second": round(middle(useful[i] / ours_steps[i]["seconds"] for i in kept), 1),
        "trl_tokens_per_second": round(middle(useful[i] / theirs_steps[i]["seconds"] for i in kept), 1),
        "floor_tokens_per_second": round(middle(useful[i] / floors[i] for i in kept), 1),
        "share_of_floor": round(middle(floors[i] / ours_steps[i]["seconds"] for i in kept), 3),
        "fitune_peak_bytes": ours_steps[-1]["peak_bytes"],
        "trl_peak_bytes": theirs_steps[-1]["peak_bytes"],
        "memory_ratio": round(ours_steps[-1]["peak_bytes"] / theirs_steps[-1]["peak_bytes"], 3),
        "largest_loss_difference": round(
            max(abs(float(a["loss"]) - float(b["loss"])) for a, b in zip(ours_steps, theirs_steps, strict=True)), 4
        ),
        "fitune_losses": [float(step["loss"]) for step in ours_steps],
        "trl_losses": [float(step["loss"]) for step in theirs_steps],
        "fitune_seconds": [round(step["seconds"], 4) for step in ours_steps],
        "trl_seconds": [round(step["seconds"], 4) for step in theirs_steps],
        "floor_seconds": [round(value, 4) for value in floors],
    }


def profile(kind: str, workload: str, steps: int, threads: int) -> dict[str, float]:
    """Share of a run's CPU time by part."""
    side = Side(kind, workload, steps, threads, profile=True)
    for _ in range(steps):
        side.step()
    times = side.hear()["profile"]
    side.end()
    parts = dict.fromkeys([*GROUPS, "other"], 0.0)
    for name, seconds in times.items():
        short = name.removeprefix("aten::")
        part = next((part for part, names in GROUPS.items() if name.startswith("aten::") and short in names), "other")
        parts[part] += seconds
    total = sum(parts.values())
    return {part: round(seconds / total, 3) for part, seconds in parts.items()}


def facts(threads: int) -> dict[str, Any]:
    """Where and with what this was measured."""
    names = ("torch", "transformers", "peft", "trl")
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "date": date.today().isoformat(), "cpu": model, "threads": threads,
        "versions": {name: importlib.metadata.version(name) for name in names},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workloads", nargs="+", default=list("abcdef"), choices=list("abcdef"))
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--profile", action="store_true", help="also where the time goes, in runs of their own")
    parser.add_argument("--out", type=Path, default=HERE / "results.json", help="a workload's older result is replaced")
    args = parser.parse_args()
    data = json.loads(args.out.read_text()) if args.out.exists() else {"results": []}
    for workload in args.workloads:
        start = time.perf_counter()
        one = compare(workload, args.steps, args.threads, args.warm)
        if args.profile:
            one["parts"] = {kind: profile(kind, workload, 4, args.threads) for kind in ("fitune", "trl")}
        one |= {"wall_seconds": round(time.perf_counter() - start, 1), "where": facts(args.threads)}
        kept = [other for other in data["results"] if other["workload"] != workload]
        data["results"] = [*kept, one]
        args.out.write_text(json.dumps(data, indent=1) + "\n")
        print(table([one]).splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
