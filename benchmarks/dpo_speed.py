"""Time of a DPO step on the CPU: fitune's and TRL's DPOTrainer on the same pairs, model, adapter and batch.

    OMP_NUM_THREADS=1 python benchmarks/dpo_speed.py --out /tmp/dpo_speed.json

Both train a rank-16 adapter on every linear layer over bf16 weights under bf16 autocast, with the reference's
log-probabilities taken before step one, so that a step is the policy's forward and backward pass alone. The first step is
left out. TRL is given the very token ids that fitune trains on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import DPOConfig, DPOTrainer

from fitune.config.sections import DataSettings, EvalSettings, RunSettings, Settings, TrainSettings
from fitune.methods.registry import METHODS
from fitune.runs.run_folder import RunFolder, read_rows
from fitune.trainers.callbacks import StopOnInterrupt
from fitune.training.components import context_of, load, make_arguments, make_schedule
from fitune.training.setup import prepare_run


def settings_for(folder: Path, rows: int, batch: int, steps: int) -> Settings:
    return Settings(
        method="dpo",
        data=DataSettings(train=f"demo:pig-latin-pairs:{rows}", eval_share=0.0),
        train=TrainSettings(batch_size=batch, max_steps=steps, learning_rate=1e-4, lr_scheduler="constant"),
        eval=EvalSettings(samples=0),
        run=RunSettings(folder=str(folder), name="ours", checkpoint_steps=1000),
    )


class Given(DPOTrainer):
    """TRL's trainer over token ids that are there already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset


class Clock(TrainerCallback):
    """Seconds of each step: the clock's, and the process's own CPU time, which other work on the machine disturbs less."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []
        self.began = (0.0, 0.0)

    def on_step_begin(self, *args, **kwargs):
        self.began = (time.perf_counter(), time.process_time())

    def on_step_end(self, *args, **kwargs):
        self.wall.append(time.perf_counter() - self.began[0])
        self.cpu.append(time.process_time() - self.began[1])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "loss" in logs:
            self.losses.append(logs["loss"])

    def found(self) -> dict:
        medians = {name: statistics.median(values[1:]) for name, values in (("wall_s", self.wall), ("cpu_s", self.cpu))}
        return {"wall": self.wall, "cpu": self.cpu, **medians}


def ours(settings: Settings) -> dict:
    run, setup = RunFolder.create(Path(settings.run.folder) / "ours"), prepare_run(settings, fit=False)
    schedule = make_schedule(setup)
    arguments = make_arguments(setup, schedule, run)
    set_seed(settings.train.seed)
    context = context_of(setup, run, load(setup), arguments, schedule, StopOnInterrupt())
    method = METHODS["dpo"].runtime()
    trainer = method.make_trainer(context, method.adapt(context))
    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    losses = [row["loss"] for row in read_rows(run.metrics) if row["kind"] == "train"]
    return {**clock.found(), "losses": losses}


def theirs(settings: Settings, folder: Path) -> dict:
    setup = prepare_run(settings, fit=False)
    model = load(setup).model
    pairs = setup.data.train
    prompts = [len(pair.chosen.input_ids) - pair.chosen.num_trained for pair in pairs]
    columns = {
        "prompt_ids": [list(pair.chosen.input_ids[:at]) for pair, at in zip(pairs, prompts, strict=True)],
        "chosen_ids": [list(pair.chosen.input_ids[at:]) for pair, at in zip(pairs, prompts, strict=True)],
        "rejected_ids": [list(pair.rejected.input_ids[at:]) for pair, at in zip(pairs, prompts, strict=True)],
    }
    clock = Clock()
    arguments = DPOConfig(
        output_dir=str(folder / "trl"), per_device_train_batch_size=settings.train.batch_size,
        max_steps=settings.train.max_steps or 1,
        learning_rate=1e-4, lr_scheduler_type="constant", beta=settings.dpo.beta, precompute_ref_log_probs=True, use_cpu=True,
        bf16=True, activation_checkpointing=False, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM")
    Given(
        model, args=arguments, train_dataset=Dataset.from_dict(columns), processing_class=setup.tokenizer, peft_config=lora,
        callbacks=[clock],
    ).train()  # fmt: skip
    return {**clock.found(), "losses": clock.losses}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        settings = settings_for(Path(scratch), asked.pairs, asked.batch, asked.steps)
        found = {"fitune": ours(settings), "trl": theirs(settings, Path(scratch)), "threads": torch.get_num_threads()}
    for name in ("fitune", "trl"):
        one = found[name]
        print(
            f"{name:8} a step: {one['cpu_s']:.2f} CPU s, {one['wall_s']:.2f} s; losses {[round(x, 4) for x in one['losses']]}"
        )
    cpu, wall = (found["trl"][name] / found["fitune"][name] for name in ("cpu_s", "wall_s"))
    print(f"ratio    {cpu:.2f} by CPU time, {wall:.2f} by the clock")
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
