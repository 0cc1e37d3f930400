"""Predicted against measured: how much a process grows that trains QLoRA over a mixture of experts on this machine's CPU.

    python benchmarks/memory/mixture.py                  # a random Qwen3-MoE of 0.99 B parameters, NF4, in a fresh process
    python benchmarks/memory/mixture.py --targets attention

The checkpoint is written as published ones are, an expert's matrices each a tensor, 2 GB in bf16, into a temporary folder.
Measured as in cpu.py, and once more from the moment at which the base is there: what training alone takes. One JSON line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "src"))

BUILT_IN = "smollm2-135m-instruct"  # its tokenizer
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
SIZES: dict[str, Any] = {
    "vocab_size": 49152, "hidden_size": 1024, "moe_intermediate_size": 768, "intermediate_size": 2048, "num_experts": 32,
    "num_experts_per_tok": 4, "num_hidden_layers": 12, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 64,
    "max_position_embeddings": 2048, "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2,
}  # fmt: skip


def write_model(folder: Path) -> int:
    """Random weights, layer by layer, under the names of published checkpoints; how many parameters they are."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

    from fitune.models.builtin import fetch

    torch.manual_seed(0)
    config = Qwen3MoeConfig(**SIZES, dtype="bfloat16", architectures=["Qwen3MoeForCausalLM"])
    config.save_pretrained(folder)
    AutoTokenizer.from_pretrained(fetch(BUILT_IN)).save_pretrained(folder)
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(config)
    where: dict[str, str] = {}
    count = 0
    for number, (name, parameter) in enumerate(dict(model.named_parameters()).items()):
        filled = torch.empty(parameter.shape, dtype=torch.bfloat16).normal_(0, 0.02)
        if "norm" in name:
            filled.fill_(1.0)
        parts = per_expert(name, filled)
        file = f"model-{number:05d}.safetensors"
        save_file(parts, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(parts, file)
        count += parameter.numel()
    index = {"metadata": {"total_size": 2 * count}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return count


def per_expert(name: str, stack: Any) -> dict[str, Any]:
    """A fused stack as the tensors that a published checkpoint has."""
    if ".experts." not in name:
        return {name: stack}
    place, _, last = name.rpartition(".")
    halves = stack.chunk(2, dim=1) if last == "gate_up_proj" else (stack,)
    names = ("gate_proj", "up_proj") if last == "gate_up_proj" else ("down_proj",)
    return {
        f"{place}.{expert}.{own}.weight": half[expert].contiguous()
        for own, half in zip(names, halves, strict=True)
        for expert in range(stack.shape[0])
    }


def measure(folder: Path, attention_alone: bool) -> dict[str, Any]:
    """Train in this process, which must be fresh."""
    import fitune
    from fitune.training import run as story
    from fitune.training.memory_report import begin_measuring

    loaded: list[Any] = []
    load = story.load

    def loading(*args: Any) -> Any:
        base = load(*args)
        before = meters[-1].measured()
        loaded.append((before["resident_growth_bytes"], begin_measuring("cpu")))
        return base

    meters: list[Any] = []
    begin = story.begin_measuring
    story.begin_measuring = lambda device: meters.append(begin(device)) or meters[-1]
    story.load = loading
    settings: dict[str, Any] = {
        "model": {
            "name": str(folder),
            "device": "cpu",
            "precision": "bf16",
            "quantization": "nf4",
            "double_quant": True,
        },
        "data": {"train": "demo:pig-latin", "eval_share": 0.01},
        "train": {"max_steps": 3, "batch_size": 8},
        "eval": {"samples": 4, "max_new_tokens": 16},
        "run": {"folder": str(folder.parent / "runs"), "name": "run"},
    }
    if attention_alone:
        settings["lora"] = {"targets": ATTENTION}
    result = fitune.train(fitune.Settings(**settings))
    memory = json.loads((result.folder / "manifest.json").read_text())["memory"]
    load_bytes, trained = loaded[0]
    grown = max(load_bytes, trained.start_bytes - meters[0].start_bytes + memory_after(trained))
    planned = memory["predicted"]["resident_growth_bytes"]
    return {
        "loading_bytes": load_bytes,
        "measured_bytes": grown,
        "predicted_bytes": planned,
        "error_percent": round(100 * (planned / grown - 1), 1),
        "parts": memory["predicted"]["parts"],
        "moment": memory["predicted"]["moment"],
    }


def memory_after(meter: Any) -> int:
    """Growth since the base was there, as it stands."""
    return meter.measured()["resident_growth_bytes"]


def main() -> None:
    """Write the checkpoint here, train in another process, print a line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", choices=("all", "attention"), default="all")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        out, sys.stdout = sys.stdout, sys.stderr
        return print(json.dumps(measure(Path(options.worker), options.targets == "attention")), file=out)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "mixture"
        folder.mkdir()
        count = write_model(folder)
        command = [sys.executable, "-W", "ignore", __file__, "--worker", str(folder), "--targets", options.targets]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        row = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"case": f"Qwen3-MoE NF4, LoRA on {options.targets}", "parameters": count, **row}))


if __name__ == "__main__":
    main()
