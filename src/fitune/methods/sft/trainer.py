"""sft and lm: next-token prediction on the trained tokens of each row.

The two differ in their data alone: prompts and responses with the loss on the responses, or plain text with the loss on
every token. The loss is that of ops/label_loss.py, in packs (ops/packed_loss.py) where the model allows it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from fitune.data.packing.padding import pad_collate
from fitune.methods.context import RunContext
from fitune.methods.runtime import Runtime
from fitune.methods.trainer_parts import generation_eval_of, lay_out, listeners
from fitune.runs import manifest as manifests
from fitune.trainers.oom_recovery import SurvivingPackedTrainer, SurvivingTrainer, TriedFirst, largest_inputs


def make_trainer(run: RunContext, model: Any) -> SurvivingTrainer | SurvivingPackedTrainer:
    """The trainer with everything that listens to it."""
    packing = lay_out(run, model, run.data.train)
    kind = SurvivingTrainer if packing.mode == "off" else partial(SurvivingPackedTrainer, packing=packing)
    callbacks = listeners(run)
    if run.device == "cuda":  # a CPU kills the process instead of telling it
        callbacks.append(TriedFirst())
    collate = partial(pad_collate, pad_id=run.renderer.tokenizer.pad_token_id)
    trainer = kind(
        model,
        run.arguments,
        train_rows=run.data.train,
        test_rows=run.data.test,
        collate=collate,
        extra_metrics=generation_eval_of(run),
        keep_checkpoints=run.keep_checkpoints,
        callbacks=callbacks,
    )
    trainer.longest = partial(largest_inputs, run.data.train, run.batches(packing.mode), collate)
    trainer.on_step_down = partial(manifests.append, run.folder.manifest, "memory", "step_downs")
    return trainer


RUNTIME = Runtime(make_trainer=make_trainer)
