"""The built-in model on Pig Latin over four bases, and 8-bit Adam beside Adam; the tables of docs/quantization.md.

    python benchmarks/quantization.py run nf4 --out results/        one run, in a process of its own
    python benchmarks/quantization.py tables results/ --docs docs/  tables and curves of all that are there

Every run of a group has the same rows, order, seed and steps. Peak memory is the process's (what `time -v` calls maximum
resident set size), Python and its libraries included; `imports` is that part alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

STEPS = {"base": 100, "optimizer": 30}
SENTENCES = 24
COMMON: dict[str, Any] = {
    "data.train": "demo:pig-latin", "data.test_share": 0.01, "train.batch_size": 8, "eval.samples": 0,
    "model.precision": "bf16", "model.device": "cpu",
}  # fmt: skip
LORA = {"lora.rank": 32, "lora.alpha": 64, "train.learning_rate": 2e-3}
FULL = {"train.tuning": "full", "train.learning_rate": 1e-4}
NF4 = {"model.quantization": "nf4", "model.double_quant": True}
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bf16": ("base", "bf16", LORA),
    "int8": ("base", "int8", {**LORA, "model.quantization": "int8"}),
    "nf4": ("base", "NF4, double quantization", {**LORA, **NF4}),
    "loftq": ("base", "the same with LoftQ", {**LORA, **NF4, "lora.init": "loftq"}),
    "adamw": ("optimizer", "AdamW", {**FULL, "train.optimizer": "adamw"}),
    "adamw_8bit": ("optimizer", "8-bit AdamW", {**FULL, "train.optimizer": "adamw_8bit"}),
}


def run(name: str, out: Path, steps: int | None) -> None:
    """Train, and write what was measured to `out`/NAME.json."""
    import fitune
    from fitune.evaluate.evaluate import answer_rows
    from fitune.evaluate.metrics import score
    from fitune.evaluate.target import open_target
    from fitune.models.quantize import stored_bytes
    from fitune.runs.folder import read_rows
    from fitune.train.ready import make_ready

    group, _, changed = RUNS[name]
    steps = steps or STEPS[group]
    here = {"train.max_steps": steps, "eval.every_steps": steps, "run.folder": str(out / "runs"), "run.name": name}
    settings = fitune.load_settings(None, {**COMMON, **changed, **here})
    imports = _peak_bytes()
    began, cpu = time.perf_counter(), time.process_time()
    result = fitune.train(settings)
    found: dict[str, Any] = {
        "steps": steps,
        "losses": [row["loss"] for row in read_rows(result.folder / "metrics.jsonl") if row["kind"] == "train"],
        "before": result.before,
        "after": result.after,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "imports_bytes": imports,
        "peak_bytes": _peak_bytes(),
    }
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")
    target = open_target(str(result.folder), device="cpu", precision="bf16")
    base = target.model.get_base_model() if target.adapter else target.model
    adapter = sum(value.numel() * value.element_size() for at, value in base.named_parameters() if ".lora_" in at)
    rows = answer_rows(target, make_ready(settings).data.test_examples[:SENTENCES], 40, 12)
    found |= {"base_bytes": stored_bytes(base) - adapter}
    found |= score([row["answer"] for row in rows], [row["wanted"] for row in rows])
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("run")
    one.add_argument("name", choices=RUNS)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--steps", type=int)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    run(given.name, given.out, given.steps)


if __name__ == "__main__":
    main()
