"""Settings' plain values → `transformers.TrainingArguments`.

In: the values of a run, and the user's ``trainer:`` section. Out: TrainingArguments.
Knows nothing of models or data, except how many rows there are.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from fitune.errors import MissingExtra, SettingsError
from fitune.ops.optimizers import OPTIMIZERS

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class Schedule:
    """Counts that follow from the rows and the settings."""

    micro_batch_rows: int
    accumulation: int
    steps_per_epoch: int
    steps: int
    warmup_steps: int
    eval_steps: int
    checkpoint_steps: int


def schedule_of(
    num_rows: int,
    batch_size: int,
    micro_rows: int,
    epochs: float,
    max_steps: int | None,
    warmup_ratio: float,
    every_steps: int | None,
    checkpoint_steps: int | None,
) -> Schedule:
    """Steps of a run over ``num_rows`` rows.

    Args:
        micro_rows: rows of a forward pass.

    Raises:
        SettingsError: the micro-batch does not divide the batch.
    """
    if batch_size % micro_rows:
        divisors = [size for size in range(1, batch_size + 1) if batch_size % size == 0]
        near = min(divisors, key=lambda size: abs(size - micro_rows))
        raise SettingsError(
            [
                f"train.micro_batch_size is {micro_rows}, which does not divide train.batch_size {batch_size}; "
                f"use a divisor, for example {near}"
            ]
        )
    per_epoch = math.ceil(num_rows / batch_size)
    steps = max_steps or math.ceil(epochs * per_epoch)
    eval_steps = every_steps or min(per_epoch, steps)
    return Schedule(
        micro_batch_rows=micro_rows,
        accumulation=batch_size // micro_rows,
        steps_per_epoch=per_epoch,
        steps=steps,
        # Warm-up begins at a rate of 0: a run of one step would learn nothing.
        warmup_steps=min(math.ceil(warmup_ratio * steps), steps - 1),
        eval_steps=eval_steps,
        checkpoint_steps=checkpoint_steps or eval_steps,
    )


def training_arguments(
    folder: Path,
    schedule: Schedule,
    *,
    epochs: float,
    max_steps: int | None,
    learning_rate: float,
    lr_scheduler: str,
    optimizer: str,
    weight_decay: float,
    max_grad_norm: float | None,
    gradient_checkpointing: bool,
    seed: int,
    mixed_precision: str,
    device: str,
    evaluates: bool,
    best_metric: str,
    log_steps: int,
    report_to: list[str],
    run_name: str,
    overrides: Mapping[str, object],
) -> TrainingArguments:
    """TrainingArguments of a run.

    Args:
        folder: where checkpoints go.
        mixed_precision: "fp32" (no autocast), "bf16" or "fp16".
        evaluates: whether there are held-out rows.
        overrides: the ``trainer:`` section, checked when the settings were loaded.

    Raises:
        MissingExtra: a tracker is not installed.
        SettingsError: transformers refuses a value of the ``trainer:`` section.
    """
    check_trackers(report_to)
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "run_name": run_name,
        "per_device_train_batch_size": schedule.micro_batch_rows,
        "per_device_eval_batch_size": schedule.micro_batch_rows,
        "gradient_accumulation_steps": schedule.accumulation,
        "num_train_epochs": epochs,
        "max_steps": max_steps or -1,
        "learning_rate": learning_rate,
        "lr_scheduler_type": SCHEDULES[lr_scheduler],
        "warmup_steps": schedule.warmup_steps,
        "optim": OPTIMIZERS[optimizer].optim,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm or 0.0,
        "seed": seed,
        "bf16": mixed_precision == "bf16",
        "fp16": mixed_precision == "fp16",
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda",
        "logging_strategy": "steps",
        "logging_steps": log_steps,
        # A loss that is not finite must halt the run, not be averaged away.
        "logging_nan_inf_filter": False,
        "eval_strategy": "steps" if evaluates else "no",
        "eval_steps": schedule.eval_steps if evaluates else None,
        "prediction_loss_only": True,
        "save_strategy": "steps",
        "save_steps": schedule.checkpoint_steps,
        "save_total_limit": None,
        "metric_for_best_model": best_metric if evaluates else None,
        "greater_is_better": best_metric != "loss" if evaluates else None,
        "report_to": report_to or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        **_checkpointing(gradient_checkpointing),
    }
    whole: dict[str, Any] = {**values, **overrides}
    try:
        return TrainingArguments(**whole)
    except (TypeError, ValueError) as error:
        if not overrides:
            raise
        raise SettingsError([f"trainer: transformers refuses {', '.join(overrides)}: {error}"]) from error


def check_trackers(names: list[str]) -> None:
    """Raise `MissingExtra` for a tracker that is not installed."""
    packages = {"tensorboard": ("tensorboard", "tensorboardX")}
    for name in names:
        if not any(importlib.util.find_spec(package) for package in packages.get(name, (name,))):
            raise MissingExtra(
                f"run.report_to names {name}, which is not installed; `pip install {name}`, or leave it out"
            )


def _checkpointing(wanted: bool) -> dict[str, bool | dict[str, bool] | None]:
    # transformers 5.2x renamed the field; the old name warns there and goes in version 6.
    known = {field.name for field in fields(TrainingArguments)}
    name = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    # The reentrant kind needs an input that requires a gradient, which a frozen embedding does not give.
    return {name: wanted, f"{name}_kwargs": {"use_reentrant": False} if wanted else None}
