"""The built-in model on the demo's rows, trained by fitune and by TRL's SFTTrainer: the losses side by side.

    python benchmarks/trl_parity.py [--steps 6] [--batch 4] [--precision fp32]

Same rows, same batches, same LoRA start, same optimizer and schedule. In fp32 the losses must agree to float
tolerance; the script exits with status 1 when they do not. In bf16 TRL runs its `bf16=True` over fp32 weights and
fitune keeps the frozen weights in bf16, so there the difference is printed and not judged.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from fitune.config.sections import (
    DataSettings,
    EvalSettings,
    LoraSettings,
    ModelSettings,
    RunSettings,
    Settings,
    TrainSettings,
)
from fitune.methods.adapt import adapt
from fitune.methods.sft.trainer import make_trainer
from fitune.runs.run_folder import RunFolder, read_rows
from fitune.trainers.callbacks import StopOnInterrupt
from fitune.trainers.sampler import epoch_order
from fitune.training.components import context_of, load, make_arguments, make_schedule
from fitune.training.setup import prepare_run

RELATIVE_TOLERANCE = 1e-5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=ModelSettings().name)
    parser.add_argument("--data", default=DataSettings().train)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    given = parser.parse_args()
    settings = Settings(
        model=ModelSettings(name=given.model, precision=given.precision, device="cpu"),
        data=DataSettings(train=given.data, eval_share=0.0),
        lora=LoraSettings(),
        train=TrainSettings(
            batch_size=given.batch, micro_batch_size=given.micro_batch, max_steps=given.steps, learning_rate=1e-3
        ),
        eval=EvalSettings(samples=0),
        run=RunSettings(),
    )
    setup = prepare_run(settings, fit=False)
    used = [setup.data.train[index] for index in epoch_order(len(setup.data.train), settings.train.seed, 0)]
    used = used[: given.steps * given.batch]
    if len(used) < given.steps * given.batch:
        parser.error(f"{given.data} has {len(used)} rows; {given.steps} steps of {given.batch} need more")
    with tempfile.TemporaryDirectory() as scratch:
        ours = fitune_losses(setup, Path(scratch) / "fitune")
        theirs = trl_losses(setup, used, Path(scratch) / "trl")
    return compare(ours, theirs, judged=given.precision == "fp32")


def context_and_model(setup, folder):
    run, schedule = RunFolder.create(folder), make_schedule(setup)
    base = load(setup)
    set_seed(setup.settings.train.seed)
    context = context_of(setup, run, base, make_arguments(setup, schedule, run), schedule, StopOnInterrupt())
    return context, adapt(context)


def fitune_losses(setup, folder):
    context, model = context_and_model(setup, folder)
    make_trainer(context, model).train()
    run = context.folder
    return [row["loss"] for row in read_rows(run.metrics) if row["kind"] == "train"]


def trl_losses(setup, rows, folder):
    labels = [[t if on else -100 for t, on in zip(row.input_ids, row.trained, strict=True)] for row in rows]
    dataset = Dataset.from_dict({"input_ids": [list(row.input_ids) for row in rows], "labels": labels})
    settings = setup.settings
    schedule, train = make_schedule(setup), settings.train
    fp32 = replace(setup.precision, dtype=torch.float32)
    context, model = context_and_model(replace(setup, precision=fp32), folder.with_name("trl-start"))
    arguments = SFTConfig(
        output_dir=str(folder),
        per_device_train_batch_size=schedule.micro_batch_rows,
        gradient_accumulation_steps=schedule.accumulation,
        max_steps=schedule.steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=schedule.warmup_steps,
        optim="adamw_torch_fused",
        max_grad_norm=train.max_grad_norm,
        seed=train.seed,
        bf16=settings.model.precision == "bf16",
        use_cpu=True,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        train_sampling_strategy="sequential",
        activation_checkpointing=False,
        max_length=None,
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model, arguments, train_dataset=dataset, processing_class=context.base.tokenizer)
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def compare(ours, theirs, judged):
    print(f"{'step':>4} {'fitune':>12} {'TRL':>12} {'difference':>12}")
    for step, (mine, other) in enumerate(zip(ours, theirs, strict=True), start=1):
        print(f"{step:>4} {mine:>12.7f} {other:>12.7f} {mine - other:>12.2e}")
    worst = max(abs(mine - other) / abs(other) for mine, other in zip(ours, theirs, strict=True))
    equal = math.isfinite(worst) and worst <= RELATIVE_TOLERANCE
    print(f"worst relative difference {worst:.1e}" + (f": {'equal' if equal else 'NOT EQUAL'}" if judged else ""))
    return 0 if equal or not judged else 1


if __name__ == "__main__":
    sys.exit(main())
