"""Peak memory of each method on the built-in model at the same batch of tokens, each in a process of its own.

    python benchmarks/rl/memory.py --out /tmp/rl-memory

The most memory that the process held (VmHWM on Linux), imports and model included, after three steps of about --tokens
tokens of rows, evaluation by generation included. Prints a table with the ratio to sft, and beside it what the process
grew by from before the base was loaded, as predicted and as measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from fitune.runs.run_folder import read_rows

NEW_TOKENS = 24
# Of the demo's rows, on average; a pair's prompt counts once, as it is computed.
ROW_TOKENS = {"sft": 68, "reward": 105, "dpo": 105, "ppo": 28 + NEW_TOKENS, "grpo": 28 + NEW_TOKENS}
ANSWERS = 4
COMMON = {
    "data.train": "demo:pig-latin:400", "data.eval_share": "0.05", "train.max_steps": "3", "eval.samples": "8",
    "eval.max_new_tokens": str(NEW_TOKENS), "lora.rank": "16", "run.log_steps": "1",
}  # fmt: skip


def settings_of(method: str, tokens: int) -> dict[str, str]:
    """Flags of a run whose steps have about so many tokens."""
    rows = round(tokens / ROW_TOKENS[method])
    if method == "sft":
        return {**COMMON, "method": method, "train.batch_size": str(rows)}
    if method in ("reward", "dpo"):
        pairs = {"data.train": "demo:pig-latin-pairs:200", "train.batch_size": str(rows)}
        return {**COMMON, **pairs, "method": method}
    rl = {
        "rl.rewards": "pig_latin", "rl.num_generations": str(ANSWERS), "rl.max_new_tokens": str(NEW_TOKENS),
        "train.batch_size": str(round(rows / ANSWERS)),
    }  # fmt: skip
    return {**COMMON, **rl, "method": method}


def measure(out: Path, method: str, tokens: int) -> dict[str, Any]:
    """Peak bytes and tokens a step of one run in a fresh process."""
    folder = out / f"{method}-{tokens}"
    if not (folder / "report.html").exists():
        flags = settings_of(method, tokens) | {"run.folder": str(out), "run.name": folder.name}
        words = [word for key, value in flags.items() for word in (f"--{key}", value)]
        subprocess.run([sys.executable, "-m", "fitune.cli", "train", *words], check=True)
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]
    memory = json.loads((folder / "manifest.json").read_text())["memory"]
    return {
        "method": method,
        "peak_bytes": rows[-1]["memory_bytes"],
        "tokens": rows[-1]["tokens"] / len(rows),
        "predicted_growth_bytes": memory["predicted"].get("resident_growth_bytes"),
        "measured_growth_bytes": memory["measured"]["resident_growth_bytes"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--methods", nargs="+", default=list(ROW_TOKENS))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = [measure(args.out, method, args.tokens) for method in args.methods]
    (args.out / "results.json").write_text(json.dumps(found, indent=1))
    print(
        "| method | tokens a step | peak GiB | × sft | growth predicted | measured | off by |\n|---|---|---|---|---|---|---|"
    )
    for one in found:
        ratio = one["peak_bytes"] / found[0]["peak_bytes"]
        predicted, measured = one["predicted_growth_bytes"], one["measured_growth_bytes"]
        growth = (
            f"{predicted / 2**30:.2f} | {measured / 2**30:.2f} | {predicted / measured - 1:+.1%}"
            if predicted
            else f"– | {measured / 2**30:.2f} | –"
        )
        print(f"| {one['method']} | {one['tokens']:,.0f} | {one['peak_bytes'] / 2**30:.2f} | {ratio:.2f} | {growth} |")


if __name__ == "__main__":
    main()
