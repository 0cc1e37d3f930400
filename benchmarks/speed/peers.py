"""Other trainers than TRL on workload a, each in an environment of its own, in turn with fitune.

    python benchmarks/speed/peers.py litgpt llama-factory --folder /tmp/peers

Each peer is installed into FOLDER once (pip, from the package registry) and runs its own command on the same texts, the
same number of rows a step, LoRA of rank 16 on all linear layers, a base in bf16, no checkpointing. None of them can be
stopped between two steps, so whole runs alternate, and a peer's seconds a step are its own log's. Best settings of each:

litgpt         finetune_lora with precision bf16-true (its adapters are bf16 too), a prompt masked, all layers but the head
LLaMA-Factory  llamafactory-cli train with bf16 and use_cpu, SDPA, template smollm2; no packing, which would change the batches
torchtune      0.6.1 does not start beside the torchao that its requirements admit (docs/tried.md)
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parents[1] / "src"))

import workloads  # noqa: E402
from compare import Side  # noqa: E402

from fitune.models.builtin import fetch  # noqa: E402
from fitune.models.source import resolve  # noqa: E402
from fitune.models.tokenizer import load_tokenizer  # noqa: E402

PACKAGES = {
    "litgpt": ["litgpt==0.5.13", "requests"],
    "llama-factory": ["llamafactory==0.9.5", "torch==2.11.0", "torchaudio==2.11.0"],
}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}


def python_of(peer: str, folder: Path) -> Path:
    """The peer's own interpreter, installed on first use."""
    place = folder / peer / "env"
    if not (place / "installed").exists():
        print(f"installing {peer} into {place}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
        subprocess.run([place / "bin" / "pip", "install", "-q", *PACKAGES[peer]], check=True)
        (place / "installed").touch()
    return place / "bin" / "python"


def texts(steps: int) -> list[dict[str, str]]:
    """Workload a as prompts and answers."""
    tokenizer = load_tokenizer(resolve(workloads.MODEL))
    turns = [example.messages or () for example in workloads.examples_of("a", steps, tokenizer)]
    return [{"instruction": said["content"], "input": "", "output": answer["content"]} for said, answer in turns]


def run_litgpt(python: Path, folder: Path, steps: int, rows: int, threads: int) -> list[float]:
    """Seconds of each step."""
    model = folder / "litgpt" / "HuggingFaceTB" / "SmolLM2-135M-Instruct"
    command = [str(python.parent / "litgpt")]
    if not (model / "lit_model.pth").exists():
        shutil.copytree(fetch(workloads.MODEL), model, dirs_exist_ok=True)
        _run([*command, "convert_to_litgpt", str(model)], threads)
    data = folder / "litgpt" / "data.json"
    # litgpt keeps back at least one row for validation.
    data.write_text(json.dumps(texts(steps) + texts(1)))
    targets = [f"--lora_{name}=true" for name in ("query", "key", "value", "projection", "mlp")]
    said = _run(
        [
            *command, "finetune_lora", str(model), "--data=JSON", f"--data.json_path={data}", "--data.mask_prompt=true",
            "--data.prompt_style=smollm2", f"--data.val_split_fraction={1 / (steps + 1):.6f}", "--precision=bf16-true",
            f"--train.global_batch_size={rows}", f"--train.micro_batch_size={rows}", f"--train.max_steps={steps}",
            "--train.epochs=1", "--train.log_interval=1", "--train.save_interval=100000",
            "--eval.interval=100000", "--eval.initial_validation=false", "--eval.final_validation=false",
            "--lora_r=16", "--lora_alpha=32", "--lora_dropout=0", "--lora_head=false", *targets, "--devices=1",
            f"--out_dir={folder / 'litgpt' / 'out'}",
        ],
        threads,
    )  # fmt: skip
    return [float(found) / 1000 for found in re.findall(r"iter time: ([\d.]+) ms", said)]


# Times of LLaMA-Factory's steps: its own log keeps whole seconds only, so the trainer's callback writes them.
FACTORY = """
import sys, time, json
from transformers import TrainerCallback
from llamafactory.train.tuner import run_exp
class Clock(TrainerCallback):
    def on_step_begin(self, *_, **__): self.start = time.perf_counter()
    def on_step_end(self, *_, **__): print("STEP", time.perf_counter() - self.start, flush=True)
run_exp(args=json.load(open(sys.argv[1])), callbacks=[Clock()])
"""


def run_factory(python: Path, folder: Path, steps: int, rows: int, threads: int) -> list[float]:
    """Seconds of each step."""
    place = folder / "llama-factory"
    (place / "rows.json").write_text(json.dumps(texts(steps)))
    (place / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.json"}}))
    settings = {
        "model_name_or_path": str(fetch(workloads.MODEL)), "stage": "sft", "do_train": True, "finetuning_type": "lora",
        "lora_rank": 16, "lora_alpha": 32, "lora_dropout": 0.0, "lora_target": "all", "dataset_dir": str(place),
        "dataset": "rows", "template": "smollm2", "cutoff_len": 512, "output_dir": str(place / "out"),
        "overwrite_output_dir": True, "per_device_train_batch_size": rows, "gradient_accumulation_steps": 1,
        "learning_rate": 1e-3, "max_steps": steps, "bf16": True, "use_cpu": True, "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True, "optim": "adamw_torch_fused", "logging_steps": 1, "report_to": "none",
        "save_strategy": "no", "disable_shuffling": True, "packing": False, "overwrite_cache": True,
    }  # fmt: skip
    (place / "settings.json").write_text(json.dumps(settings))
    (place / "run.py").write_text(FACTORY)
    said = _run([str(python), str(place / "run.py"), str(place / "settings.json")], threads)
    return [float(found) for found in re.findall(r"^STEP ([\d.]+)", said, re.M)]


RUNS: dict[str, Callable[..., list[float]]] = {"litgpt": run_litgpt, "llama-factory": run_factory}


def run_fitune(steps: int, threads: int) -> list[float]:
    """Seconds of each step."""
    side = Side("fitune", "a", steps, threads)
    seconds = [side.step()["seconds"] for _ in range(steps)]
    side.end()
    return seconds


def _run(command: list[str], threads: int) -> str:
    threads_set = {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, env={**os.environ, **ENVIRONMENT, **threads_set}, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[:3])} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout + done.stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("peers", nargs="+", choices=list(PACKAGES))
    parser.add_argument("--folder", type=Path, required=True, help="where environments are made; kept")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=HERE / "peers.json", help="a peer's older result is replaced")
    args = parser.parse_args()
    rows = workloads.BATCH["a"]
    tokens = sum(len(row.input_ids) for batch in workloads.rows_of("a", args.steps)[0] for row in batch) / args.steps
    results: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {}
    for peer in args.peers:
        python, ours, theirs = python_of(peer, args.folder), [], []
        for round_number in range(args.rounds):
            order = (run_fitune, RUNS[peer]) if round_number % 2 else (RUNS[peer], run_fitune)
            for run in order:
                mine = run is run_fitune
                seconds = (
                    run(args.steps, args.threads) if mine else run(python, args.folder, args.steps, rows, args.threads)
                )
                # The first step warms up.
                (ours if mine else theirs).append(statistics.median(seconds[1:]))
        ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
        results[peer] = {
            "packages": PACKAGES[peer], "date": date.today().isoformat(), "threads": args.threads, "steps": args.steps,
            "fitune_seconds_a_step": ours, "peer_seconds_a_step": theirs,
            "fitune_tokens_per_second": round(tokens / statistics.median(ours), 1),
            "peer_tokens_per_second": round(tokens / statistics.median(theirs), 1),
            "speedup": round(statistics.median(ratios), 2),
        }  # fmt: skip
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        print(peer, json.dumps(results[peer]), flush=True)


if __name__ == "__main__":
    main()
