"""What a run is made of: settings and prepared rows → schedule, arguments, model, trainer.

The last place that sees a settings object; everything it calls takes plain values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from transformers import TrainingArguments

from fitune.adapters.adapter_folder import add_adapter, continue_adapter
from fitune.adapters.inject import attach, lora_config
from fitune.adapters.locate import lora_options
from fitune.adapters.loftq import start_loftq
from fitune.adapters.premerge import merge_into
from fitune.adapters.reference import REFERENCE
from fitune.config.sections import Settings
from fitune.console import log, warn
from fitune.data.packing.tree import Row
from fitune.methods.registry import method_of
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.quantization.quantize import Quantization, refuse_full_tuning
from fitune.runs.run_folder import RunFolder
from fitune.trainers.arguments import Schedule, schedule_of, training_arguments
from fitune.trainers.base import FituneTrainer
from fitune.trainers.callbacks import BestKept, ProgressLine, RunLog, StopOnInterrupt
from fitune.trainers.generation_eval import GenerationEval, questions_of
from fitune.trainers.memory import peak_memory_bytes
from fitune.trainers.packing_support import Packing, choose_packing
from fitune.training.setup import RunSetup, merges_of, start_of


def make_schedule(settings: Settings, num_rows: int) -> Schedule:
    """Steps of the run."""
    return schedule_of(
        num_rows=num_rows,
        batch_size=settings.train.batch_size,
        micro_batch_size=settings.train.micro_batch_size,
        epochs=settings.train.epochs,
        max_steps=settings.train.max_steps,
        warmup_share=settings.train.warmup_share,
        every_steps=settings.eval.every_steps,
        checkpoint_steps=settings.run.checkpoint_steps,
    )


def make_arguments(settings: Settings, setup: RunSetup, schedule: Schedule, run: RunFolder) -> TrainingArguments:
    """transformers' arguments of the run; faults of the ``trainer:`` section come out here."""
    return training_arguments(
        run.checkpoints,
        schedule,
        epochs=settings.train.epochs,
        max_steps=settings.train.max_steps,
        learning_rate=settings.train.learning_rate or default_rate(settings),
        schedule_name=settings.train.schedule,
        optimizer=_optimizer(settings.train.optimizer, setup.hardware.device),
        weight_decay=settings.train.weight_decay,
        max_grad_norm=settings.train.max_grad_norm,
        gradient_checkpointing=settings.train.gradient_checkpointing,
        seed=settings.train.seed,
        mixed_precision=setup.precision.name,
        device=setup.hardware.device,
        evaluates=bool(setup.data.test),
        best_metric=best_metric_of(settings),
        log_steps=settings.run.log_steps,
        report_to=list(settings.run.report_to),
        run_name=run.path.name,
        overrides=settings.trainer,
    )


def best_metric_of(settings: Settings) -> str:
    """The metric that picks the best checkpoint; a method without a loss on held-out rows takes its first one."""
    metric, measured = settings.eval.best_metric, method_of(settings.method).metrics
    return metric if metric in measured else measured[0]


def default_rate(settings: Settings) -> float:
    """The learning rate when none is set."""
    return method_of(settings.method).learning_rates[settings.train.tuning]


def _optimizer(name: str, device: str) -> str:
    """The optimizer that is meant; a CPU's memory has nowhere to be paged to."""
    if name.startswith("paged_") and device == "cpu":
        log(f"train.optimizer is {name}: on a CPU there is nothing to page, so it is {name.removeprefix('paged_')}")
        return name.removeprefix("paged_")
    return name


def log_schedule(settings: Settings, schedule: Schedule, num_rows: int) -> None:
    """Say what was derived, and from what."""
    asked = settings.train.learning_rate
    rate, kind = asked or default_rate(settings), f"{settings.method} with {settings.train.tuning}"
    log(f"learning rate {rate:g}: {'train.learning_rate' if asked else f'the default for {kind}'}")
    rows = f"{num_rows:,} rows, {settings.train.batch_size} a step, {settings.train.epochs:g} epochs"
    log(
        f"{schedule.steps:,} steps: {'train.max_steps' if settings.train.max_steps else rows}; "
        f"warm-up {schedule.warmup_steps}, evaluation every {schedule.eval_steps}, "
        f"checkpoint every {schedule.checkpoint_steps}"
    )


def load(settings: Settings, setup: RunSetup) -> LoadedBase:
    """The base model, with what it has to say."""
    precision = setup.precision
    if settings.train.tuning == "full":
        # An update of 1e-5 of a weight is lost in bf16's 8 bits: the masters stay fp32, autocast multiplies in bf16.
        precision = replace(precision, dtype=torch.float32, reason="master weights of full fine-tuning")
    base = load_base(
        setup.source,
        setup.tokenizer,
        setup.template,
        setup.hardware,
        precision,
        settings.model.attention,
        settings.model.trust_remote_code,
        Quantization(settings.model.quantization, settings.model.double_quant, tuple(settings.model.unquantized)),
        keep_dense=settings.lora.init == "loftq",
    )
    base = merge_into(base, merges_of(settings))
    for note in base.notes:
        log(note)
    return base


def adapt(settings: Settings, base: LoadedBase) -> Any:
    """The model with its trained parameters marked."""
    if settings.train.tuning == "full":
        refuse_full_tuning(base.model, base.source.name)
        base.model.requires_grad_(True)
        return base.model
    if (start := start_of(settings)) is not None:
        options = lora_options(start)
        log(f"going on with the adapter in {start}: rank {options['rank']}, alpha {options['alpha']:g}")
        warn_trained_bias(options["bias"])
        return continue_adapter(base, start)
    warn_trained_bias(settings.lora.bias)
    options = {**settings.lora.model_dump(exclude={"continue_from"}), "new_token_ids": base.new_token_ids}
    model = attach(base.model, lora_config(base.model, **options))
    if settings.lora.init == "loftq":
        log(str(start_loftq(model, base.dense)))
        base.dense.clear()  # as large as the base before quantization
    return model


def warn_trained_bias(bias: str) -> None:
    if bias != "none":
        warn(f"lora.bias is {bias}: trained biases change the base model even with the adapter off")


def adapt_with_reference(settings: Settings, base: LoadedBase) -> Any:
    """`adapt`, and where training goes on with an earlier adapter, a frozen copy of it for `as_reference`."""
    model = adapt(settings, base)
    if settings.train.tuning == "lora" and (start := start_of(settings)) is not None:
        add_adapter(model, start, REFERENCE)
        for name, value in model.named_parameters():
            if REFERENCE in name:
                value.requires_grad_(False)
    return model


def listeners(settings: Settings, run: RunFolder, setup: RunSetup, interrupt: StopOnInterrupt) -> list[Any]:
    """What listens to a trainer; `bind_callbacks` must follow."""
    log = RunLog(run.log_metrics, partial(peak_memory_bytes, setup.hardware.device))
    callbacks: list[Any] = [log, ProgressLine(), interrupt]
    if setup.data.test:
        metric = best_metric_of(settings)
        callbacks.append(BestKept(metric, higher_is_better=metric != "loss", patience=settings.eval.patience))
    return callbacks


def bind_callbacks(trainer: FituneTrainer, callbacks: list[Any]) -> FituneTrainer:
    """Tell each listener whom it listens to."""
    for callback in callbacks:
        callback.trainer = trainer
    return trainer


def generation_eval_of(settings: Settings, run: RunFolder, setup: RunSetup) -> GenerationEval | None:
    """Held-out questions answered by generation at each evaluation; None when there are none."""
    questions = questions_of(setup.data.test_examples, settings.eval.samples)
    rows_at_once = settings.train.batch_size
    examiner = GenerationEval(setup.renderer, questions, settings.eval.max_new_tokens, rows_at_once, run.log_samples)
    return examiner if questions else None


def lay_out(
    settings: Settings, setup: RunSetup, model: Any, arguments: TrainingArguments, rows: Sequence[Row]
) -> Packing:
    """How rows are laid out, tried on this model; said aloud."""
    device = setup.hardware.device
    packing = choose_packing(
        model.to(device),
        rows,
        settings.data.packing,
        arguments.per_device_train_batch_size,
        arguments.world_size,
        torch.autocast(device, dtype=torch.bfloat16, enabled=arguments.bf16),
    )
    for note in packing.notes:
        log(note)
    if packing.mode != "off":
        shared = "prefixes that rows share are computed once" if packing.mode == "tree" else "side by side"
        log(f"rows are packed without padding, {shared}: checked against the model's plain forward")
    return packing
