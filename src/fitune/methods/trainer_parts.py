"""What every method's trainer is given: who listens to it, the layout of its rows, questions to answer, what happens out
of memory.

In: a `RunContext`. Out: callbacks, a `Packing`, a `GenerationEval`, functions for `OomRecovery`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import nn
from transformers import TrainerCallback

from fitune.console import log, warn
from fitune.data.examples import questions_of
from fitune.data.packing.pair_batching import AnyPair
from fitune.data.packing.tree import Row
from fitune.data.token_rows import PairRow, TokenRow
from fitune.errors import ModelError
from fitune.methods.context import RunContext
from fitune.models.base_model import base_model_of
from fitune.models.hardware import peak_memory_bytes
from fitune.models.length_rules import length_rule
from fitune.ops.token_logprobs import check_row_batch
from fitune.runs import manifest as manifests
from fitune.trainers.callbacks import BestKept, ProgressLine, RunLog
from fitune.trainers.generation_eval import GenerationEval
from fitune.trainers.listeners.inputs_on_host import InputsOnHost
from fitune.trainers.listeners.learning_signal import LearningSignal
from fitune.trainers.oom_recovery import StepDown
from fitune.trainers.packing_support import Packing, choose_packing
from fitune.trainers.preference import PairOptions, sides
from fitune.trainers.sampler import Numbered
from fitune.trainers.worst_case_batch import largest_rows


def listeners(run: RunContext) -> list[TrainerCallback]:
    """What listens to a trainer, which binds them when it is made."""
    metrics = RunLog(run.folder.log_metrics, partial(peak_memory_bytes, run.device))
    callbacks: list[TrainerCallback] = [metrics, ProgressLine(), LearningSignal(), run.interrupt]
    if run.activation_offloading and run.device == "cuda":
        callbacks.append(InputsOnHost())
    elif run.activation_offloading:
        warn(f"train.activation_offloading is on, and {run.device} has no memory apart from the host's: it is left out")
    if run.data.eval:
        metric = run.best_metric
        callbacks.append(BestKept(metric, higher_is_better=metric != "loss", patience=run.patience))
    return callbacks


def generation_eval_of(run: RunContext) -> GenerationEval | None:
    """Held-out questions answered by generation at each evaluation; None when there are none."""
    questions = questions_of(run.data.eval_examples, run.eval_samples)
    if not questions:
        return None
    return GenerationEval(run.renderer, questions, run.eval_new_tokens, run.batch_size, run.folder.log_samples)


def lay_out(
    run: RunContext, model: nn.Module, rows: Sequence[Row], longest: int | None = None, apart: bool = False
) -> Packing:
    """How rows are laid out, tried on this model; said aloud.

    Args:
        longest: tokens of the longest row that there will be; None takes ``rows``.
        apart: the trainer computes rows apart whose length means something else to the model.

    Raises:
        ModelError: rows that such a model computes differently by their length, and the trainer takes them together.
    """
    longest = longest or max(len(row.input_ids) for row in rows)
    if not apart:
        _refuse_mixed_lengths(model, min(len(row.input_ids) for row in rows), longest)
    packing = choose_packing(
        model.to(run.device),
        rows,
        run.packing,
        run.arguments.per_device_train_batch_size,
        torch.autocast(run.device, dtype=torch.bfloat16, enabled=run.arguments.bf16),
        longest,
        bool(run.arguments.neftune_noise_alpha),
    )
    for note in packing.notes:
        log(note)
    if packing.mode != "off":
        shared = "prefixes that rows share are computed once" if packing.mode == "tree" else "side by side"
        log(f"rows are packed without padding, {shared}: checked against the model's plain forward pass")
    return packing


def _refuse_mixed_lengths(model: nn.Module, shortest: int, longest: int) -> None:
    rule = length_rule(base_model_of(model).config)
    if rule is not None and rule.mixes(shortest, longest):
        raise ModelError(
            f"the model's rotary embedding ({rule.kind}) computes rows of more than {rule.limit:,} tokens otherwise; "
            f"this method takes rows of {shortest:,} to {longest:,} tokens together and would be wrong about some; keep "
            f"them within {rule.limit:,} (data.max_length with data.too_long: drop; rl.max_new_tokens)"
        )


def note_step_down(run: RunContext) -> StepDown:
    """Takes down in the manifest that memory ran out and what was given up."""
    return partial(manifests.append, run.folder.manifest, "memory", "step_downs")


def largest_rows_of(
    run: RunContext, rows: Sequence[TokenRow] | Sequence[PairRow], mode: str
) -> Callable[[], Sequence[Numbered]] | None:
    """Makes the rows of the run's largest pass, to be tried before step one; None on a CPU, which kills a process that
    runs out of memory instead of telling it.

    Args:
        mode: how rows are laid out.
    """
    return partial(largest_rows, rows, run.batches(mode)) if run.device == "cuda" else None


def answer_pair_parts(run: RunContext, model: nn.Module, met: Sequence[AnyPair] | None = None) -> PairOptions[AnyPair]:
    """What a `PairTrainer` over the log-probabilities of answers takes beside its own options.

    Args:
        met: the pairs that the run will train on; None takes all.
    """
    train = run.data.train
    rows_met = cast("Sequence[TokenRow] | Sequence[PairRow]", train if met is None else met)
    longest = max(row.num_tokens for row in sides([*train, *run.data.eval]))
    packing = lay_out(run, model, sides(train), longest)
    check_row_batch(model, sides(train), packing.mode)
    return {
        "train_rows": train,
        "eval_rows": run.data.eval,
        "packing": packing,
        "extra_metrics": generation_eval_of(run),
        "keep_checkpoints": run.keep_checkpoints,
        "callbacks": listeners(run),
        "on_step_down": note_step_down(run),
        "largest_rows": largest_rows_of(run, rows_met, packing.mode),
    }
