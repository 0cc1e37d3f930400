"""Predicted against measured: how much a process grows that trains on this machine's CPU.

    python benchmarks/memory/cpu.py            # the cases below, each in a fresh process
    python benchmarks/memory/cpu.py --floor    # what a process grows by whatever the model: planning/cpu_memory.py's PROCESS_BYTES

Each case is a run of `fitune train`; both figures are those of its manifest. Measured is VmHWM of /proc/self/status
when training has ended, less VmRSS just before the base is loaded, when everything is imported and the rows are prepared
(fitune.training.memory_report). Both count the file pages of mapped weights and libraries. Linux only. One JSON line a case.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

BUILT_IN = "smollm2-135m-instruct"
CASES: dict[str, dict[str, Any]] = {
    "LoRA, packs of 8 rows": {},
    "LoRA, packs of 32 rows": {"train": {"batch_size": 32}},
    "LoRA, rank 64, checkpointing": {"lora": {"rank": 64}, "train": {"gradient_checkpointing": True}},
    "LoRA, padded": {"data": {"packing": "off"}},
    "LoRA, fp32": {"model": {"precision": "fp32"}},
    "LoRA over int8": {"model": {"precision": "bf16", "quantization": "int8"}},
    "LoRA over NF4": {"model": {"precision": "bf16", "quantization": "nf4"}},
    "full": {"train": {"tuning": "full", "batch_size": 4}},
}


def settings_of(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Three steps on Pig Latin sentences, with one evaluation before, and one after them."""
    whole: dict[str, Any] = {
        "model": {"name": BUILT_IN, "device": "cpu"},
        "data": {"train": "demo:pig-latin", "eval_share": 0.01},
        "train": {"max_steps": 3, "batch_size": 8},
        "eval": {"samples": 4, "max_new_tokens": 16},
        "run": {"folder": str(folder), "name": "run"},
    }
    for section, values in case.items():
        whole[section] = {**whole.get(section, {}), **values}
    return whole


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Train in this process, which must be fresh: the run itself measures, and predicts when it has ended."""
    import fitune
    from fitune.training import autofit

    autofit.SMALLEST_ON_CPU = 0  # the floor is measured with a model that a run would not compare
    with tempfile.TemporaryDirectory() as folder:
        result = fitune.train(fitune.Settings(**settings_of(case, Path(folder))))
        memory = json.loads((result.folder / "manifest.json").read_text())["memory"]
    grown, planned = memory["measured"]["resident_growth_bytes"], memory["predicted"]["resident_growth_bytes"]
    return {
        "measured_bytes": grown,
        "predicted_bytes": planned,
        "error_percent": round(100 * (planned / grown - 1), 1),
        "parts": memory["predicted"]["parts"],
        "moment": memory["predicted"]["moment"],
    }


def floor_case(folder: Path) -> dict[str, Any]:
    """A model of 2 layers of 64 with the built-in's tokenizer: next to no tensors."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from fitune.models.builtin import fetch

    AutoTokenizer.from_pretrained(fetch(BUILT_IN)).save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return {"model": {"name": str(folder)}}


def in_fresh_process(case: dict[str, Any]) -> dict[str, Any]:
    """`measure` elsewhere."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--worker", json.dumps(case)], capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"the run of {case} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure the cases, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="part of a case's name")
    parser.add_argument("--out", type=Path, help="write the lines to this file too, for compare.py")
    parser.add_argument("--floor", action="store_true", help="measure what does not depend on the model")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        out, sys.stdout = sys.stdout, sys.stderr
        return print(json.dumps(measure(json.loads(options.worker))), file=out)
    if options.floor:
        with tempfile.TemporaryDirectory() as folder:
            row = in_fresh_process(floor_case(Path(folder)))
        from fitune.planning.cpu_memory import PROCESS_BYTES

        row["process_bytes"] = row["measured_bytes"] - row["predicted_bytes"] + PROCESS_BYTES
        return print(json.dumps(row))
    from fitune.models.builtin import fetch

    fetch(BUILT_IN)  # unpacked here, or the worker would begin with the memory of the unpacking
    rows = []
    for name, case in CASES.items():
        if options.only in name:
            rows.append({"case": name, **in_fresh_process(case)})
            print(json.dumps(rows[-1]), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
