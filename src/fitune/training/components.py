"""What a run is made of: settings and prepared rows → schedule, arguments, base model, and what the method is given.

The last place that sees a settings object; everything it calls takes plain values.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from transformers import TrainingArguments

from fitune.adapters.premerge import merge_into
from fitune.config.sections import Settings
from fitune.console import log, warn
from fitune.distributed import ranks
from fitune.errors import SettingsError
from fitune.methods.context import RunContext
from fitune.methods.registry import METHODS
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.quantization.quantize import QuantizationConfig
from fitune.ops.label_loss import balance_loss_left_out
from fitune.ops.optimizers import OPTIMIZERS
from fitune.runs.run_folder import RunFolder
from fitune.trainers.arguments import Schedule, schedule_of, training_arguments
from fitune.trainers.callbacks import StopOnInterrupt
from fitune.training.autofit import epochs_of
from fitune.training.run_setup import RunSetup
from fitune.training.setup import merges_of, start_of


def make_schedule(setup: RunSetup) -> Schedule:
    """Steps of the run."""
    settings = setup.settings
    return schedule_of(
        num_rows=len(setup.data.train),
        batch_size=settings.train.batch_size,
        micro_rows=settings.train.micro_rows,
        epochs=settings.train.epochs,
        max_steps=settings.train.max_steps,
        warmup_ratio=settings.train.warmup_ratio,
        every_steps=settings.eval.every_steps,
        checkpoint_steps=settings.run.checkpoint_steps,
    )


def make_arguments(setup: RunSetup, schedule: Schedule, run: RunFolder) -> TrainingArguments:
    """transformers' arguments of the run; faults of the ``trainer:`` section come out here."""
    settings = setup.settings
    if settings.trainer.get("neftune_noise_alpha") and METHODS[settings.method].reads not in ("rows", "text"):
        fault = f"trainer.neftune_noise_alpha is set, and method {settings.method} adds no noise; leave it out"
        raise SettingsError([fault])
    return training_arguments(
        run.checkpoints,
        schedule,
        epochs=settings.train.epochs,
        max_steps=settings.train.max_steps,
        learning_rate=settings.train.learning_rate or default_rate(settings),
        lr_scheduler=settings.train.lr_scheduler,
        optimizer=_optimizer(settings.train.optimizer, setup.hardware.device),
        weight_decay=settings.train.weight_decay,
        max_grad_norm=settings.train.max_grad_norm,
        gradient_checkpointing=settings.train.gradient_checkpointing,
        seed=settings.train.seed,
        mixed_precision=setup.precision.name,
        device=setup.hardware.device,
        evaluates=_evaluates(setup),
        best_metric=best_metric_of(settings),
        log_steps=settings.run.log_steps,
        report_to=list(settings.run.report_to),
        run_name=run.path.name,
        overrides=settings.trainer,
    )


def _evaluates(setup: RunSetup) -> bool:
    """Whether there is something to measure: held-out rows, and where all is measured on answers, some to be given."""
    answers_only = METHODS[setup.settings.method].sampling is not None
    return bool(setup.data.eval) and (setup.settings.eval.samples > 0 or not answers_only)


def best_metric_of(settings: Settings) -> str:
    """The metric that picks the best checkpoint; a method without a loss on held-out rows takes its first one."""
    metric, measured = settings.eval.best_metric, METHODS[settings.method].metrics
    return metric if metric in measured else measured[0]


def default_rate(settings: Settings) -> float:
    """The learning rate when none is set."""
    return METHODS[settings.method].learning_rates[settings.train.tuning]


def _optimizer(name: str, device: str) -> str:
    """The optimizer that is meant; a CPU's memory has nowhere to be paged to."""
    optimizer = OPTIMIZERS[name]
    if optimizer.on_cpu and device == "cpu":
        log(f"train.optimizer is {name}: on a CPU there is nothing to page, so it is {optimizer.on_cpu}")
        return optimizer.on_cpu
    return name


def log_schedule(setup: RunSetup, schedule: Schedule) -> None:
    """Say what was derived, and from what."""
    settings, num_rows = setup.settings, len(setup.data.train)
    asked = settings.train.learning_rate
    rate, kind = asked or default_rate(settings), f"{settings.method} with {settings.train.tuning}"
    log(f"learning rate {rate:g}: {'train.learning_rate' if asked else f'the default for {kind}'}")
    rows = f"{num_rows:,} rows, {settings.train.batch_size} per step, {settings.train.epochs:g} epochs"
    log(
        f"{schedule.steps:,} steps: {'train.max_steps' if settings.train.max_steps else rows}; "
        f"warm-up {schedule.warmup_steps}, evaluation every {schedule.eval_steps}, "
        f"checkpoint every {schedule.checkpoint_steps}"
    )


def load(setup: RunSetup) -> LoadedBase:
    """The base model, with what it has to say."""
    settings, precision = setup.settings, setup.precision
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
        QuantizationConfig(settings.model.quantization, settings.model.double_quant, tuple(settings.model.unquantized)),
        keep_dense=settings.lora.init == "loftq",
        config=setup.config,
        allow_unused=settings.model.allow_unused_weights,
        on_host=settings.parallel.strategy == "fsdp2" and ranks.size() > 1,
    )
    base = merge_into(base, merges_of(settings))
    for note in base.notes:
        log(note)
    if left_out := balance_loss_left_out(base.model.config):
        warn(left_out)
    return base


def context_of(
    setup: RunSetup,
    folder: RunFolder,
    base: LoadedBase,
    arguments: TrainingArguments,
    schedule: Schedule,
    interrupt: StopOnInterrupt,
) -> RunContext:
    """What the method is given. Settings stop here."""
    settings = setup.settings
    return RunContext(
        folder=folder,
        base=base,
        data=setup.data,
        renderer=setup.renderer,
        device=setup.hardware.device,
        section=settings.own,
        runs_folder=settings.run.folder,
        tuning=settings.train.tuning,
        lora=settings.lora.model_dump(exclude={"continue_from"}),
        start=start_of(settings),
        arguments=arguments,
        schedule=schedule,
        batch_size=settings.train.batch_size,
        epochs=epochs_of(settings, len(setup.data.train)),
        seed=settings.train.seed,
        packing=settings.data.packing,
        tiled_mlp=settings.train.tiled_mlp,
        activation_offloading=settings.train.activation_offloading,
        interrupt=interrupt,
        best_metric=best_metric_of(settings),
        patience=settings.eval.patience,
        keep_checkpoints=settings.run.keep_checkpoints,
        eval_samples=settings.eval.samples,
        eval_new_tokens=settings.eval.max_new_tokens,
    )
