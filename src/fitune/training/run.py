"""A run from settings to adapter, top to bottom. Settings stop here; every worker takes plain values.

fitune.train(settings)                    a new run
fitune.train(resume="runs/NAME")          goes on from its last whole checkpoint, with its own settings
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import cast

from transformers import TrainingArguments, set_seed

from fitune.adapters.inject import trained_share
from fitune.config.sections import Settings
from fitune.console import log, warn
from fitune.distributed import ranks, together
from fitune.errors import NO_MEMORY, FituneError, RunError, SettingsError, TrainingHalted, no_memory_left
from fitune.exporting.export import export
from fitune.methods.registry import METHODS
from fitune.methods.save_result import rehearse_saving
from fitune.ops.optimizers import OPTIMIZERS
from fitune.runs import manifest as manifests
from fitune.runs.checkpoints import step_of
from fitune.runs.compare import find_run, read_settings
from fitune.runs.disk_space import bytes_needed, check_space, folder_bytes
from fitune.runs.manifest import ModelFacts
from fitune.runs.run_folder import RunFolder
from fitune.runs.run_result import RunResult
from fitune.signals import ENDING, Stopped, handled, raise_stopped
from fitune.trainers.arguments import Schedule, check_trackers
from fitune.trainers.base import FituneTrainer
from fitune.trainers.callbacks import ProgressLine, StopOnInterrupt
from fitune.trainers.parallel.sharding import broadcast_whole, shard, trained_whole
from fitune.training.autofit import predicted_run
from fitune.training.components import context_of, load, log_schedule, make_arguments, make_schedule
from fitune.training.finalize import finish, log_memory, write_pages
from fitune.training.memory_report import begin_measuring
from fitune.training.resume import check_same_facts, check_same_settings, checkpoint_to_resume, is_over, with_fit_of
from fitune.training.run_setup import RunSetup
from fitune.training.setup import prepare_on_ranks, seen_by_all


def train(
    settings: Settings | None = None, resume: bool | str | Path = False, exclude: Sequence[str] = ()
) -> RunResult:
    """Train, from settings to a saved adapter or model.

    Args:
        settings: the run. Only a resumed run may leave it out: then the run's own settings hold.
        resume: a run's folder or name to go on with; True for the run that ``settings.run.name`` names.
        exclude: sentences that the demo task must not make; a resumed run knows its own.

    Returns:
        What the run left. After Ctrl-C, SIGTERM or SIGHUP its status is "interrupted" and a checkpoint is there.

    Raises:
        FituneError: a fault in settings, data, model or run folder, before the first step; `TrainingHalted` when the
            loss is not finite, `StorageError` when the run folder takes no more. The manifest of a run that had begun
            then says so.
        Stopped: SIGTERM or SIGHUP came before the first step or after the last, or twice.
    """
    together.start()
    settings, run = together.everywhere("the settings are read", partial(_open, settings, resume))
    run = RunFolder(together.by_first("the run's folder is named", lambda: run.path))  # its name may hold the time
    check_trackers(list(settings.run.report_to))
    resumed, date = together.everywhere("the run's folder is looked at", run.manifest.exists), None
    if resumed:
        begun = manifests.read(run.manifest)
        exclude, date = begun["data"]["exclude"], begun.get("model", ModelFacts()).get("template_date")
    setup = prepare_on_ranks(settings, exclude, fit=not resumed, date=date)
    schedule = make_schedule(setup)
    arguments = together.everywhere("arguments are made", partial(make_arguments, setup, schedule, run))
    log_schedule(setup, schedule)
    if not resumed:
        together.by_first("the run's folder is made", lambda: RunFolder.create(run.path).path)
        together.everywhere("the run's folder is looked for", partial(seen_by_all, run.path))
    interrupt = StopOnInterrupt()
    with handled(ENDING, raise_stopped), interrupt.finishing(), run.locked():
        with _told(run):
            checkpoint = together.by_first("the run is resumed", partial(_go_on, run, setup)) if resumed else None
        with _ending_noted(run), _told(run):
            if not resumed:
                together.by_first("the run begins", partial(_begin, run, setup))
            result = _train(run, setup, schedule, arguments, checkpoint, interrupt)
    wanted = setup.settings.export
    if result.status == "finished" and wanted.to and ranks.is_first():
        exports = _export(run, list(wanted.to), wanted.gguf_type, setup.settings.model.device)
        return replace(result, exports=exports)
    return result


@contextmanager
def _told(run: RunFolder) -> Generator[None, None, None]:
    """Errors of a full, read-only or broken disk, and of memory that is used up, in one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, FituneError):
            raise
        if no_memory_left(error):
            raise RunError(f"{NO_MEMORY}, then continue with: {resume_command(run.path)}") from error
        if (told := run.storage_error(error)) is None:
            raise
        raise told from error


@contextmanager
def _ending_noted(run: RunFolder) -> Generator[None, None, None]:
    """The manifest says how a run ended that did not finish."""
    try:
        yield
    except (KeyboardInterrupt, Stopped):
        _interrupted(run)
        raise
    except Exception as error:
        if not ranks.is_first():
            raise
        if run.metrics.exists():
            run.note_end("halted" if isinstance(error, TrainingHalted) else "failed", error=str(error))
        else:
            run.discard()  # nothing was done yet: the name stays free for the next attempt
        raise


def _export(run: RunFolder, forms: list[str], gguf_type: str, device: str) -> tuple[Path, ...]:
    """The copies that the settings ask for. The run is finished and saved by now: a failure costs the copy alone."""
    made = []
    for form in forms:
        try:
            made.append(export(str(run.path), form, gguf_type=gguf_type, device=device).folder)
        except FituneError as error:
            again = f"fitune export {run.path} --to {form}"
            warn(f"the run is saved, but its export as {form} failed: {error}. Retry with: {again}")
    return tuple(made)


def resume_command(path: Path) -> str:
    """What to type to go on with a run."""
    return f"fitune train --resume {path}"


def _open(settings: Settings | None, resume: bool | str | Path | None) -> tuple[Settings, RunFolder]:
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
        raise RunError(f"{path} is finished; there is nothing to resume. To train further, start a new run")
    if settings is None:
        settings = Settings(**read_settings(run))
    else:
        settings = with_fit_of(run, settings)
        check_same_settings(run, settings.model_dump(mode="json"))
    return settings, run


def _new_name(settings: Settings) -> str:
    """``smollm2-135m-instruct-pig-latin-20261124-125000``: model, data, time."""
    parts = Path(settings.model.name).name, Path(settings.data.train.rsplit(":", 1)[-1]).stem
    words = [re.sub(r"[^a-z0-9.]+", "-", part.lower()).strip("-.")[:40] for part in parts]
    return "-".join([*filter(None, words), datetime.now().strftime("%Y%m%d-%H%M%S")])


def _begin(run: RunFolder, setup: RunSetup) -> None:
    """Write down what this run is."""
    settings = setup.settings
    run.write_settings(settings.model_dump(mode="json"))
    manifests.write(
        run.manifest,
        {
            "status": "running",
            "started": manifests.now(),
            "ended": None,
            "command": manifests.command_line(),
            "method": settings.method,
            "tuning": settings.train.tuning,
            "versions": manifests.versions(),
            "hardware": setup.hardware.to_dict(),
            "model": setup.base_facts,
            "data": setup.data_facts(),
            "seeds": {"seed": settings.train.seed},
            "memory": setup.fit_facts,
            "resumed": [],
        },
    )
    log(f"run folder: {run.path}")


def _go_on(run: RunFolder, setup: RunSetup) -> Path | None:
    """Check that a resumed run is still the same; the checkpoint to go on from."""
    check_same_facts(run, dict(setup.data.hashes), cast(ModelFacts, setup.base_facts))
    checkpoint = checkpoint_to_resume(run)
    resumed = {"at": manifests.now(), "from_step": step_of(checkpoint) if checkpoint else 0}
    history = [*manifests.read(run.manifest).get("resumed", []), resumed]
    manifests.update(run.manifest, status="running", ended=None, error=None, resumed=history)
    return checkpoint


def _train(
    run: RunFolder,
    setup: RunSetup,
    schedule: Schedule,
    arguments: TrainingArguments,
    checkpoint: Path | None,
    interrupt: StopOnInterrupt,
) -> RunResult:
    """From prepared rows to the saved result."""
    settings, meter = setup.settings, begin_measuring(setup.hardware.device)
    set_seed(settings.train.seed)  # grown embedding rows start at random
    base = together.everywhere("the model is loaded", partial(load, setup))
    set_seed(settings.train.seed)
    context = context_of(setup, run, base, arguments, schedule, interrupt)
    method = METHODS[settings.method].runtime()
    model = method.adapt(context)
    trained, total = trained_share(model)
    log(f"training {trained:,} of {total:,} parameters ({trained / total:.2%})")
    final_bytes = 4 * (total if settings.train.tuning == "full" else trained)
    states = OPTIMIZERS[settings.train.optimizer].states_of(one for one in model.parameters() if one.requires_grad)
    needed = bytes_needed(trained, states.total, settings.run.keep_checkpoints, final_bytes)
    together.by_first("the disk is looked at", lambda: check_space(run.path, needed, held_bytes=folder_bytes(run.path)))
    manifests.update(
        run.manifest,
        parameters={"trained": trained, "total": total, "share": trained / total},
        training={**asdict(schedule), "learning_rate": arguments.learning_rate, "precision": setup.precision.name},
    )

    if settings.parallel.strategy == "fsdp2" and ranks.size() > 1:
        broadcast_whole([value for value in model.parameters() if value.requires_grad])
        count = shard(model, setup.hardware.device)
        log(f"{count} layers are sharded over {ranks.size()} ranks (FSDP2)")
    trainer = together.everywhere("the trainer is made", partial(method.make_trainer, context, model))
    with trained_whole(model):
        together.by_first("saving is rehearsed", partial(rehearse_saving, context, trainer, model))
    if ranks.size() > 1:  # noise and dropout of its own on each rank
        set_seed(settings.train.seed + ranks.rank())
    if checkpoint is not None and is_over(checkpoint, schedule.steps):
        trainer.load_finished_state(checkpoint)
    else:
        _steps(run, trainer, checkpoint, interrupt)
    step = trainer.state.global_step
    if interrupt.stops and step < schedule.steps and not trainer.extra_state.get("stopped_early"):
        _interrupted(run, f" at step {step} of {schedule.steps}")
        return RunResult(folder=run.path, status="interrupted", steps=step, signal=interrupt.number)

    saved, results = finish(run, trainer, partial(method.save, context))
    measured = meter.measured()
    end = partial(_note_end, run, setup, trainer.layout, total, measured, results)
    before = together.by_first("the run's pages are written", end)
    return RunResult(
        folder=run.path,
        status="finished",
        steps=step,
        saved=saved,
        best_step=results.get("best_step"),
        before=before,
        after=results.get("after"),
    )


def _note_end(
    run: RunFolder, setup: RunSetup, layout: str, total: int, measured: dict[str, int], results: manifests.Results
) -> dict[str, float] | None:
    """Results, memory and pages of a finished run; returns what was measured before its first step."""
    log_memory(run, predicted_run(setup, layout, total), measured)
    whole = manifests.update(run.manifest, status="finished", ended=manifests.now(), results=results)
    write_pages(run, Settings().model_dump(mode="json"))
    return whole.get("results", {}).get("before")


def _steps(run: RunFolder, trainer: FituneTrainer, checkpoint: Path | None, interrupt: StopOnInterrupt) -> None:
    """The base measured first, in a new run, and then every step."""
    if trainer.eval_dataset is not None and checkpoint is None:
        before = trainer.evaluate()
        plain = {name.removeprefix("eval_"): value for name, value in before.items()}
        manifests.update(run.manifest, results={"before": plain})
    try:
        with interrupt.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressLine):
                callback.close()


def _interrupted(run: RunFolder, where: str = "") -> None:
    """Note and say that the run was stopped, and how it goes on."""
    run.note_end("interrupted")
    log(f"stopped{where}; continue with: {resume_command(run.path)}")
