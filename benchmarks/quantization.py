"""The built-in model on Pig Latin over four bases, and 8-bit Adam beside Adam; the tables of docs/quantization.md.

    python benchmarks/quantization.py run nf4 --out results/        one run, in a process of its own
    python benchmarks/quantization.py prepare                       what PEFT's k-bit preparation costs and gives
    python benchmarks/quantization.py tables results/ --svg FILE    tables, and the loss curves as a picture

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

STEPS = {"base": 100, "optimizer": 12}
SENTENCES = 24
COMMON: dict[str, Any] = {
    "data.train": "demo:pig-latin", "data.eval_share": 0.01, "train.batch_size": 8, "eval.samples": 0,
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
    from fitune.answer_metrics import score
    from fitune.evaluation.evaluate import answer_rows
    from fitune.evaluation.inference_model import open_target
    from fitune.models.quantization.quantize import stored_bytes
    from fitune.runs.run_folder import read_rows
    from fitune.training.setup import prepare_run

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
    rows = answer_rows(target, prepare_run(settings, fit=False).data.eval_examples[:SENTENCES], 40, 12)
    found |= {"base_bytes": stored_bytes(base) - adapter}
    found |= score([row["answer"] for row in rows], [row["wanted"] for row in rows])
    (out / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def prepare() -> None:
    """PEFT's `prepare_model_for_kbit_training` on the NF4 base: bytes, and the loss under the run's own autocast."""
    import torch
    from peft import prepare_model_for_kbit_training

    from fitune.models.hardware import Precision, detect
    from fitune.models.load_base import load_base
    from fitune.models.quantization.quantize import QuantizationConfig, stored_bytes
    from fitune.models.source import resolve
    from fitune.models.template import resolve_template
    from fitune.models.tokenizer import load_tokenizer

    source = resolve("smollm2-135m-instruct")
    tokenizer = load_tokenizer(source)
    rest = resolve_template(tokenizer), detect("cpu"), Precision(torch.bfloat16, "benchmark")
    model: Any = load_base(source, tokenizer, *rest, quantization=QuantizationConfig("nf4", True)).model
    ids = tokenizer("The birch canoe slid on the smooth planks. Glue the sheet to the dark blue background.")
    ids_BT = torch.tensor([ids["input_ids"]])

    def measure(name: str, autocast: bool) -> None:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(ids_BT, use_cache=False).logits[0, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits, ids_BT[0, 1:]).item()
        print(f"{name}: {stored_bytes(model) / 1e6:.1f} MB, autocast {autocast}: loss {loss:.6f}")

    measure("as loaded", True)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    measure("prepared", True)


def tables(folder: Path, svg: Path | None) -> None:
    """Markdown tables of what lies in ``folder``; the curves of the first group into ``svg``."""
    found = {name: one for name in RUNS if (one := _read(folder, name))["losses"]}
    for group in STEPS:
        rows = {name: found[name] for name in found if RUNS[name][0] == group}
        if not rows:
            continue
        marks = [1, 10, 25, 50, 75, 100] if group == "base" else [1, 4, 8, 12]
        columns = ["", "base", "peak memory", "CPU s per step", *(f"loss at {mark}" for mark in marks)]
        print("| " + " | ".join([*columns, "held-out loss", "word accuracy"]) + " |")
        print("|---" * (len(marks) + 6) + "|")
        for name, one in rows.items():
            losses = [f"{_around(one['losses'], mark):.2f}" if mark <= len(one["losses"]) else "" for mark in marks]
            ended = "after" in one
            cells = [
                RUNS[name][1],
                f"{one['base_bytes'] / 1e6:.0f} MB" if "base_bytes" in one else "",
                f"{one['peak_bytes'] / 2**30:.2f} GiB" if ended else "",
                f"{one['cpu_seconds'] / one['steps']:.1f}" if ended else "",
                *losses,
                f"{one['before']['loss']:.2f} → {one['after']['loss']:.3f}"
                if ended
                else f"cut at {len(one['losses'])}",
                f"{one['word_accuracy']:.1%}" if "word_accuracy" in one else "",
            ]
            print("| " + " | ".join(cells) + " |")
        print()
    if svg is not None:
        svg.write_text(
            _curves({RUNS[name][1]: one["losses"] for name, one in found.items() if RUNS[name][0] == "base"})
        )


def _read(folder: Path, name: str) -> dict[str, Any]:
    """What a run left; of one that was cut short its losses alone."""
    path, metrics = folder / f"{name}.json", folder / "runs" / name / "metrics.jsonl"
    if path.exists():
        return json.loads(path.read_text())
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    return {"losses": [row["loss"] for row in rows if row["kind"] == "train"]}


def _around(losses: list[float], step: int) -> float:
    """Mean of the losses from two steps before to two after; the first step's alone."""
    near = losses[:1] if step == 1 else losses[max(0, step - 3) : step + 2]
    return sum(near) / len(near)


def _curves(lines: dict[str, list[float]]) -> str:
    """Loss over steps, smoothed over nine of them."""
    width, height, left, bottom = 640, 300, 44, 30
    longest, top = max(len(line) for line in lines.values()), 8.0
    colours = ("#2563eb", "#d97706", "#15803d", "#be123c")
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]

    def place(step: float, loss: float) -> str:
        x = left + (width - left - 12) * step / longest
        return f"{x:.1f},{12 + (height - bottom - 12) * (1 - min(loss, top) / top):.1f}"

    for tick in range(0, 9, 2):
        y = place(0, tick).split(",")[1]
        parts.append(
            f'<line x1="{left}" x2="{width - 12}" y1="{y}" y2="{y}" stroke="#ddd"/><text x="18" y="{y}">{tick}</text>'
        )
    for number, (name, losses) in enumerate(lines.items()):
        smooth = [sum(part) / len(part) for at in range(len(losses)) if (part := losses[max(0, at - 4) : at + 5])]
        points = " ".join(place(step + 1, loss) for step, loss in enumerate(smooth))
        colour = colours[number % len(colours)]
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        parts.append(f'<text x="{width - 220}" y="{30 + 18 * number}" fill="{colour}">{name}</text>')
    parts.append(f'<text x="{width // 2 - 20}" y="{height - 8}">step (of {longest})</text></svg>')
    return "\n".join(parts) + "\n"


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    one = parts.add_parser("run")
    one.add_argument("name", choices=RUNS)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--steps", type=int)
    parts.add_parser("prepare")
    table = parts.add_parser("tables")
    table.add_argument("folder", type=Path)
    table.add_argument("--svg", type=Path)
    given = parser.parse_args()
    if given.part == "prepare":
        prepare()
    elif given.part == "tables":
        tables(given.folder, given.svg)
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        run(given.name, given.out, given.steps)


if __name__ == "__main__":
    main()
