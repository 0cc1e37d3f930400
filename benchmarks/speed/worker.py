"""One trainer that takes a step when it is told to; started by compare.py, one process for each side.

Reads "go" lines from standard input, answers each with a JSON line: seconds of the step, loss, and at the end the most
memory the process held while training. The step is timed from the trainer's own begin to its end, optimizer included.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
import workloads
from transformers import AutoModelForCausalLM, TrainerCallback

from fitune.models.builtin import fetch


@dataclass(frozen=True)
class Recipe:
    """What both sides are told alike."""

    learning_rate: float = 1e-3
    rank: int = 16
    alpha: float = 32
    lr_scheduler: str = "constant"
    warmup_ratio: float = 0.0
    seed: int = 0


class Gate(TrainerCallback):
    """Waits for its turn before each step, reports after it."""

    def __init__(self, answer: Any):
        self.answer = answer
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        sys.stdin.readline()
        self.start, self.cpu_start = time.perf_counter(), time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.start
        self.cpu_seconds = time.process_time() - self.cpu_start

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **_: Any) -> None:
        if "loss" in logs:
            self.answer(
                {
                    "seconds": self.seconds,
                    "cpu_seconds": self.cpu_seconds,
                    "loss": logs["loss"],
                    "peak_bytes": peak_bytes(),
                }
            )


def peak_bytes() -> int:
    """Most resident memory since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status; this benchmark measures memory on Linux")


def forget_peak() -> None:
    """The peak is counted from here on: loading the model is not part of it."""
    Path("/proc/self/clear_refs").write_text("5")


def base_model() -> Any:
    return AutoModelForCausalLM.from_pretrained(fetch(workloads.MODEL), dtype=torch.bfloat16)


def fitune_trainer(batches: list, tokenizer: Any, gate: Gate, folder: str, recipe: Recipe) -> Any:
    """What `fitune train` builds: LoRA, the packing that the check allows, our trainer."""
    from functools import partial

    from fitune.adapters.inject import attach, lora_config
    from fitune.data.packing.padding import pad_collate
    from fitune.models.hardware import settle_cpu
    from fitune.trainers.arguments import Schedule, training_arguments
    from fitune.trainers.packed import PackedTrainer
    from fitune.trainers.packing_support import choose_packing

    rows = [row for batch in batches for row in batch]
    size = len(batches[0])
    settle_cpu()
    model = base_model()
    torch.manual_seed(recipe.seed)
    model = attach(model, lora_config(model, rank=recipe.rank, alpha=recipe.alpha))
    steps = len(batches)
    warmup = math.ceil(recipe.warmup_ratio * steps)
    arguments = training_arguments(
        Path(folder), Schedule(size, 1, steps, steps, warmup, steps, 10**6), epochs=1, max_steps=None,
        learning_rate=recipe.learning_rate, lr_scheduler=recipe.lr_scheduler, optimizer="adamw", weight_decay=0.0,
        max_grad_norm=1.0, gradient_checkpointing=False, seed=recipe.seed,
        mixed_precision="bf16", device="cpu", evaluates=False, best_metric="loss",
        log_steps=1, report_to=[], run_name="speed", overrides={"save_strategy": "no"},
    )  # fmt: skip
    autocast = torch.autocast("cpu", torch.bfloat16)
    packing = choose_packing(model, rows, "auto", size, autocast=autocast)
    assert packing.mode == "tree", packing.notes
    trainer = PackedTrainer(
        model,
        arguments,
        rows,
        [],
        partial(pad_collate, pad_id=tokenizer.pad_token_id),
        callbacks=[gate],
        packing=packing,
    )
    trainer.order = range(len(rows))  # the rows as they come, as in the peer
    trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if type(c).__name__ == "_EpochOrder"))
    return trainer


def trl_trainer(batches: list, tokenizer: Any, gate: Gate, folder: str, recipe: Recipe) -> Any:
    """TRL's SFTTrainer: model in bf16, bf16=True, no checkpointing, its loss in chunks (its default)."""
    from datasets import Dataset
    from peft import LoraConfig, get_peft_model
    from trl import SFTConfig, SFTTrainer

    from fitune.trainers.arguments import SCHEDULES

    rows = [row for batch in batches for row in batch]
    labels = [[t if on else -100 for t, on in zip(row.input_ids, row.trained, strict=True)] for row in rows]
    dataset = Dataset.from_dict({"input_ids": [list(row.input_ids) for row in rows], "labels": labels})
    arguments = SFTConfig(
        output_dir=folder, per_device_train_batch_size=len(batches[0]), num_train_epochs=1,
        learning_rate=recipe.learning_rate, lr_scheduler_type=SCHEDULES[recipe.lr_scheduler],
        warmup_steps=math.ceil(recipe.warmup_ratio * len(batches)), optim="adamw_torch_fused", max_grad_norm=1.0,
        seed=recipe.seed, bf16=True, use_cpu=True,
        logging_steps=1, report_to="none", train_sampling_strategy="sequential", save_strategy="no", max_length=None,
        activation_checkpointing=False, disable_tqdm=True,
    )  # fmt: skip
    model = base_model()
    torch.manual_seed(recipe.seed)
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )  # fmt: skip
    model = get_peft_model(model, config)
    return SFTTrainer(model, arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[gate])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["fitune", "trl"])
    parser.add_argument("workload", choices=list(workloads.BATCH))
    parser.add_argument("steps", type=int)
    parser.add_argument("threads", type=int)
    parser.add_argument("--profile", action="store_true", help="profile the last step")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    replies, sys.stdout = sys.stdout, sys.stderr  # trainers print

    def answer(what: dict[str, Any]) -> None:
        replies.write(json.dumps(what) + "\n")
        replies.flush()

    batches, tokenizer = workloads.rows_of(args.workload, args.steps)
    gate = Gate(answer)
    with tempfile.TemporaryDirectory() as folder:
        make = fitune_trainer if args.kind == "fitune" else trl_trainer
        trainer = make(batches, tokenizer, gate, folder, Recipe())
        forget_peak()
        answer({"ready": True})
        if not args.profile:
            trainer.train()
            return
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            trainer.train()
        answer({"profile": {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}})


if __name__ == "__main__":
    main()
