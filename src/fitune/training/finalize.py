"""The end of a run: the best weights back in place, the adapter or the model saved, results, card and report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from fitune.console import log, warn
from fitune.distributed import together
from fitune.errors import RunError
from fitune.methods.save_result import open_again
from fitune.runs import manifest as manifests
from fitune.runs.checkpoints import damaged_file, is_complete, step_of
from fitune.runs.html_report import write_report
from fitune.runs.manifest import Results
from fitune.runs.model_card import write_card
from fitune.runs.run_folder import RunFolder, read_rows
from fitune.trainers.base import FituneTrainer
from fitune.trainers.listeners.learning_signal import SIGNAL
from fitune.trainers.parallel.sharding import trained_whole
from fitune.training.memory_report import compare


def finish(
    run: RunFolder, trainer: FituneTrainer, save: Callable[[FituneTrainer, nn.Module], Path]
) -> tuple[Path, Results]:
    """Save what the run is for.

    Args:
        save: writes the trained model as its method does, and names the folder.

    Returns:
        The saved folder, and the results for the manifest: steps, best_step, after, final_loss.
    """
    kept_step = put_best_back(run, trainer)
    after = metrics_after(run, trainer, kept_step) if trainer.eval_dataset is not None else None
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    # transformers' Trainer turns the cache off for training; whoever loads the result wants it.
    model.config.use_cache = True
    with trained_whole(model):
        saved = together.by_first("the result is saved", lambda: _saved(save, trainer, model))
    log(f"saved to {saved}")
    losses = [row["loss"] for row in read_rows(run.metrics) if row.get("kind") == "train"]
    results = Results(steps=trainer.state.global_step, best_step=kept_step, final_loss=losses[-1] if losses else None)
    if without := trainer.extra_state.get(SIGNAL, {}).get("without"):
        results["steps_without_signal"] = without
    if after is not None:
        results["after"] = after
    return saved, results


def _saved(save: Callable[[FituneTrainer, nn.Module], Path], trainer: FituneTrainer, model: nn.Module) -> Path:
    saved = save(trainer, model)
    try:
        open_again(model, saved)
    except RunError as error:
        raise RunError(f"the result lies in {saved}, but it does not open again: {error}") from error
    return saved


def log_memory(run: RunFolder, predicted: dict[str, object], measured: dict[str, int]) -> None:
    """Predicted and measured peak side by side: said, and kept in the manifest; a warning when they part."""
    facts: dict[str, object] = {"predicted": predicted, "measured": measured}
    comparison = compare(predicted, measured)
    if comparison is not None:
        facts["comparison"] = comparison.to_dict()
        for line in comparison.lines():
            log(line)
        if warning := comparison.warning():
            warn(warning)
    manifests.update(run.manifest, memory=facts)


def put_best_back(run: RunFolder, trainer: FituneTrainer) -> int:
    """Load the best checkpoint's weights unless they are in place; the step they come from."""
    last, best = trainer.state.global_step, trainer.state.best_global_step
    folder = run.checkpoints / f"checkpoint-{best}"
    if not best or best == last or not is_complete(folder):
        return last
    if name := damaged_file(folder):
        warn(f"{folder}, the best checkpoint, is damaged ({name} is not what was written): the last weights are saved")
        return last
    trainer.load_trained(folder)
    value = trainer.state.best_metric
    log(f"best at step {best} of {last} ({trainer.args.metric_for_best_model} {value:.4g}): these weights are saved")
    return step_of(folder)


def metrics_after(run: RunFolder, trainer: FituneTrainer, step: int) -> dict[str, float]:
    """What was measured at ``step``, measured now if it was not; the answers of then are kept as those of the end."""
    rows = together.by_first("the log is read", lambda: _evaluations(run, step))
    if not rows:
        trainer.state.global_step, last = step, trainer.state.global_step
        trainer.evaluate()
        trainer.state.global_step = last
        rows = together.by_first("the log is read", lambda: _evaluations(run, step))
    samples = [row for row in read_rows(run.samples) if row["step"] == step and row["moment"] == "during"]
    run.log_samples([{**row, "moment": "after"} for row in samples])
    return {name: value for name, value in rows[-1].items() if name not in ("step", "kind")}


def _evaluations(run: RunFolder, step: int) -> list[dict[str, Any]]:
    """Rows of the log of an evaluation at ``step``."""
    return [row for row in read_rows(run.metrics) if row.get("kind") == "eval" and row["step"] == step]


def write_pages(run: RunFolder, defaults: dict[str, object]) -> None:
    """The model card and the report; a disk that is full by now costs the pages, not the run.

    Args:
        defaults: the settings at their defaults.
    """
    try:
        write_card(run, defaults)
        log(f"report: {write_report(run, defaults)}")
    except OSError as error:
        warn(f"the run is saved, but its card or report could not be written: {error}")
