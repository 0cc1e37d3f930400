"""A run from settings to adapter, top to bottom. Settings stop here; every worker takes plain values.

    fitune.train(settings)                    a new run
    fitune.train(resume="runs/NAME")          goes on from its last whole checkpoint, with its own settings
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from fitune.adapters.attach import attach, lora_config, trained_share
from fitune.config import Settings
from fitune.console import say
from fitune.data.collate import pad_collate
from fitune.errors import RunError, SettingsError, TrainingHalted
from fitune.models.hardware import choose_precision, detect
from fitune.models.load import LoadedBase, load_base
from fitune.models.source import resolve
from fitune.runs import manifest as manifests
from fitune.runs.compare import find_run, read_settings
from fitune.runs.folder import RunFolder
from fitune.runs.space import bytes_needed, check_space, folder_bytes, size
from fitune.train.arguments import LEARNING_RATES, Schedule, check_trackers, schedule_of, training_arguments
from fitune.train.callbacks import BestKept, ProgressLine, RunLog, StopOnInterrupt
from fitune.train.examine import Examiner
from fitune.train.finish import finish
from fitune.train.memory import peak_memory_bytes
from fitune.train.ready import Ready, make_ready
from fitune.train.resume import check_same_facts, check_same_settings, checkpoint_to_resume, is_over
from fitune.train.trainer import FituneTrainer


@dataclass(frozen=True)
class RunResult:
    """What a run left. ``status`` is finished or interrupted; ``saved`` the adapter's or model's folder."""

    folder: Path
    status: str
    steps: int
    saved: Path | None = None
    best_step: int | None = None
    before: dict[str, float] | None = None
    after: dict[str, float] | None = None

    @property
    def exit_code(self) -> int:
        """For the command line: 130 after Ctrl-C, as shells expect."""
        return 130 if self.status == "interrupted" else 0


def train(settings: Settings | None = None, resume: bool | str | Path = False) -> RunResult:
    """Train, from settings to a saved adapter or model.

    Args:
        settings: the run. Only a resumed run may leave it out: then the run's own settings hold.
        resume: a run's folder or name to go on with; True for the run that ``settings.run.name`` names.

    Returns:
        What the run left. After Ctrl-C its status is "interrupted" and a checkpoint is there.

    Raises:
        FituneError: a fault in settings, data, model or run folder, before the first step; `TrainingHalted` when the
            loss is not finite. The manifest of a run that had begun then says so.
    """
    settings, run = _open(settings, resume)
    resumed = run.manifest.exists()
    check_trackers(list(settings.run.report_to))
    with StopOnInterrupt() as interrupt:
        ready = make_ready(settings)
        if not resumed:
            run = RunFolder.create(run.path)
        with run.locked():
            checkpoint = _begin(run, settings, ready, resumed)
            try:
                return _train(settings, run, ready, checkpoint, interrupt)
            except KeyboardInterrupt:
                manifests.update(run.manifest, status="interrupted", ended=manifests.now())
                say(f"stopped; continue with: {resume_command(run.path)}")
                raise
            except Exception as error:
                status = "halted" if isinstance(error, TrainingHalted) else "failed"
                manifests.update(run.manifest, status=status, ended=manifests.now(), error=str(error))
                raise


def resume_command(path: Path) -> str:
    """What to type to go on with a run."""
    return f"fitune train --resume {path}"


def _open(settings: Settings | None, resume: bool | str | Path) -> tuple[Settings, RunFolder]:
    """Settings and folder of a new run (the folder is not made yet) or of one that is resumed."""
    if resume is False or resume is None:
        if settings is None:
            raise SettingsError(["no settings were given; pass fitune.Settings(), or name a run to resume"])
        run = RunFolder(Path(settings.run.folder) / (settings.run.name or _new_name(settings)))
        run.refuse_other()
        return settings, run
    if resume is True:
        if settings is None or settings.run.name is None:
            raise RunError("resume needs to know which run: name it (`--resume runs/NAME`), or set run.name")
        path = Path(settings.run.folder) / settings.run.name
    else:
        path = find_run(str(resume), settings.run.folder if settings else "runs")
    run = RunFolder.open(path)
    if manifests.read(run.manifest).get("status") == "finished":
        raise RunError(f"{path} is finished; there is nothing to resume. Train further by starting a new run")
    if settings is None:
        settings = Settings(**read_settings(run))
    else:
        check_same_settings(run, settings.model_dump(mode="json"))
    return settings, run


def _new_name(settings: Settings) -> str:
    """``smollm2-135m-instruct-pig-latin-20261124-125000``: model, data, time."""
    parts = Path(settings.model.name).name, Path(settings.data.train.rsplit(":", 1)[-1]).stem
    words = [re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-.")[:40] for part in parts]
    return "-".join([*filter(None, words), datetime.now().strftime("%Y%m%d-%H%M%S")])


def _begin(run: RunFolder, settings: Settings, ready: Ready, resumed: bool) -> Path | None:
    """Write down what this run is, or check that a resumed one still is; the checkpoint to go on from."""
    if resumed:
        check_same_facts(run, dict(ready.data.hashes), ready.base_facts)
        checkpoint = checkpoint_to_resume(run)
        before = manifests.read(run.manifest).get("resumed", [])
        from_step = int(checkpoint.name.rsplit("-", 1)[1]) if checkpoint else 0
        history = [*before, {"at": manifests.now(), "from_step": from_step}]
        manifests.update(run.manifest, status="running", ended=None, error=None, resumed=history)
        return checkpoint
    run.write_settings(settings.model_dump(mode="json"))
    manifests.write(run.manifest, {
        "status": "running",
        "started": manifests.now(),
        "ended": None,
        "command": manifests.command_line(),
        "method": settings.method,
        "tuning": settings.train.tuning,
        "versions": manifests.versions(),
        "hardware": ready.hardware.to_dict(),
        "model": ready.base_facts,
        "data": ready.data_facts(settings.data.train, settings.data.test),
        "seeds": {"seed": settings.train.seed},
        "resumed": [],
    })
    say(f"run folder: {run.path}")
    return None


def _train(
    settings: Settings, run: RunFolder, ready: Ready, checkpoint: Path | None, interrupt: StopOnInterrupt
) -> RunResult:
    """From prepared rows to the end."""
    schedule = schedule_of(
        num_rows=len(ready.data.train),
        batch_size=settings.train.batch_size,
        micro_batch_size=settings.train.micro_batch_size,
        epochs=settings.train.epochs,
        max_steps=settings.train.max_steps,
        warmup_share=settings.train.warmup_share,
        every_steps=settings.eval.every_steps,
        checkpoint_steps=settings.run.checkpoint_steps,
    )
    learning_rate = settings.train.learning_rate or LEARNING_RATES[settings.train.tuning]
    arguments = training_arguments(
        run.checkpoints,
        schedule,
        epochs=settings.train.epochs,
        max_steps=settings.train.max_steps,
        learning_rate=learning_rate,
        schedule_name=settings.train.schedule,
        optimizer=settings.train.optimizer,
        weight_decay=settings.train.weight_decay,
        max_grad_norm=settings.train.max_grad_norm,
        gradient_checkpointing=settings.train.gradient_checkpointing,
        seed=settings.train.seed,
        mixed_precision=ready.precision.name,
        device=ready.hardware.device,
        evaluates=bool(ready.data.test),
        best_metric=settings.eval.best_metric,
        log_steps=settings.run.log_steps,
        report_to=list(settings.run.report_to),
        run_name=run.path.name,
        overrides=settings.trainer,
    )
    _tell_plan(settings, schedule, learning_rate, len(ready.data.train))

    base = _load(settings, ready)
    set_seed(settings.train.seed)
    model = _adapt(settings, base)
    trained, total = trained_share(model)
    say(f"training {trained:,} of {total:,} parameters ({trained / total:.2%})")
    final_bytes = 4 * (total if settings.train.tuning == "full" else trained)
    needed = bytes_needed(trained, settings.train.optimizer, settings.run.keep_checkpoints, final_bytes)
    check_space(run.path, needed, held_bytes=folder_bytes(run.path))
    manifests.update(
        run.manifest,
        parameters={"trained": trained, "total": total, "share": trained / total},
        training={"steps": schedule.steps, "steps_per_epoch": schedule.steps_per_epoch, "learning_rate": learning_rate,
                  "warmup_steps": schedule.warmup_steps, "micro_batch_rows": schedule.micro_batch_rows,
                  "accumulation": schedule.accumulation, "precision": ready.precision.name},
    )  # fmt: skip

    examiner = Examiner(
        run, base.tokenizer, ready.renderer, ready.examples(settings.eval.samples), settings.eval.max_new_tokens
    )
    log = RunLog(run.log_metrics, partial(peak_memory_bytes, ready.hardware.device))
    progress = ProgressLine()
    callbacks = [log, progress, interrupt]
    if ready.data.test:
        metric = settings.eval.best_metric
        callbacks.append(BestKept(metric, higher_is_better=metric != "loss", patience=settings.eval.patience))
    trainer = FituneTrainer(
        model,
        arguments,
        train_rows=ready.data.train,
        test_rows=ready.data.test,
        collate=partial(pad_collate, pad_id=base.tokenizer.pad_token_id),
        examine=examiner if examiner.examples else None,
        keep_checkpoints=settings.run.keep_checkpoints,
        callbacks=callbacks,
    )
    for callback in callbacks:
        callback.trainer = trainer

    if ready.data.test and checkpoint is None:
        before = trainer.evaluate()
        manifests.update(run.manifest, results={"before": plain_metrics(before)})
    if checkpoint is not None and is_over(checkpoint, schedule.steps):
        trainer.take_up(checkpoint)
    else:
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        finally:
            progress.close()
    step = trainer.state.global_step
    if interrupt.asked and step < schedule.steps and not trainer.carried.get("stopped_early"):
        manifests.update(run.manifest, status="interrupted", ended=manifests.now())
        say(f"stopped at step {step} of {schedule.steps}; continue with: {resume_command(run.path)}")
        return RunResult(run.path, "interrupted", step)
    saved, results = finish(run, trainer, base, settings.train.tuning, ready.base_facts, bool(ready.data.test))
    manifests.update(run.manifest, status="finished", ended=manifests.now(), results=results)
    return RunResult(
        run.path, "finished", step, saved, results.get("best_step"),
        manifests.read(run.manifest)["results"].get("before"), results.get("after"),
    )  # fmt: skip


def plain_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """Metric names without the prefix of transformers."""
    return {name.removeprefix("eval_"): value for name, value in metrics.items()}


def _tell_plan(settings: Settings, schedule: Schedule, learning_rate: float, num_rows: int) -> None:
    """Say what was derived, and from what."""
    rate_from = "train.learning_rate" if settings.train.learning_rate else f"the default for {settings.train.tuning}"
    say(f"learning rate {learning_rate:g}: {rate_from}")
    steps_from = (
        "train.max_steps"
        if settings.train.max_steps
        else f"{num_rows:,} rows / {settings.train.batch_size} a step × {settings.train.epochs:g} epochs"
    )
    say(f"{schedule.steps:,} steps: {steps_from}; warm-up {schedule.warmup_steps}, "
        f"evaluation every {schedule.eval_steps}, checkpoint every {schedule.checkpoint_steps}")


def _load(settings: Settings, ready: Ready) -> LoadedBase:
    """The base model, with what it has to say."""
    precision = ready.precision
    if settings.train.tuning == "full":
        # Steps of the optimizer are smaller than bf16 can add to a weight: the masters stay fp32, autocast multiplies.
        precision = replace(precision, dtype=torch.float32)
    base = load_base(
        ready.source,
        ready.tokenizer,
        ready.template,
        ready.hardware,
        precision,
        settings.model.attention,
        settings.model.trust_remote_code,
    )
    for note in base.notes:
        say(note)
    return base


def _adapt(settings: Settings, base: LoadedBase) -> Any:
    """The model with its trained parameters marked."""
    if settings.train.tuning == "full":
        base.model.requires_grad_(True)
        return base.model
    lora = settings.lora
    config = lora_config(**lora.model_dump(), model=base.model, new_token_ids=base.new_token_ids)
    if lora.bias != "none":
        say(f"lora.bias {lora.bias}: trained biases change the base model even with the adapter off")
    return attach(base.model, config)
