"""sft and lm: next-token prediction on the trained tokens of each row.

The two differ in their data alone: prompts and responses with the loss on the responses, or plain text with the loss on
every token. The loss is that of loss.py, in packs (packed.py) where the model allows it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from transformers import TrainingArguments

from fitune.config.sections import Settings
from fitune.data.packing.padding import pad_collate
from fitune.methods.registry import Method
from fitune.models.load_base import LoadedBase
from fitune.runs import manifest as manifests
from fitune.runs.run_folder import RunFolder
from fitune.trainers.arguments import LEARNING_RATES
from fitune.trainers.callbacks import StopOnInterrupt
from fitune.trainers.oom_recovery import SurvivingPackedTrainer, SurvivingTrainer, TriedFirst, largest_inputs
from fitune.training.autofit import batches_of
from fitune.training.components import adapt, bind_callbacks, generation_eval_of, lay_out, listeners
from fitune.training.setup import RunSetup


def make_trainer(
    settings: Settings,
    run: RunFolder,
    setup: RunSetup,
    base: LoadedBase,
    model: Any,
    arguments: TrainingArguments,
    interrupt: StopOnInterrupt,
) -> SurvivingTrainer | SurvivingPackedTrainer:
    """The trainer with everything that listens to it."""
    callbacks = listeners(settings, run, setup, interrupt)
    packing = lay_out(settings, setup, model, arguments, setup.data.train)
    kind = SurvivingTrainer if packing.mode == "off" else partial(SurvivingPackedTrainer, packing=packing)
    if setup.hardware.device == "cuda":  # a CPU kills the process instead of telling it
        callbacks.append(TriedFirst())
    collate = partial(pad_collate, pad_id=setup.tokenizer.pad_token_id)
    trainer = kind(
        model,
        arguments,
        train_rows=setup.data.train,
        test_rows=setup.data.test,
        collate=collate,
        extra_metrics=generation_eval_of(settings, run, setup),
        keep_checkpoints=settings.run.keep_checkpoints,
        callbacks=callbacks,
    )
    bind_callbacks(trainer, callbacks)
    micro = settings.train.micro_batch_size or settings.train.batch_size
    batches = batches_of(settings, micro, packing.mode, len(setup.data.train))
    trainer.longest = partial(largest_inputs, setup.data.train, batches, collate)
    trainer.on_step_down = partial(manifests.append, run.manifest, "memory", "step_downs")
    return trainer


METHOD = Method(adapt=adapt, make_trainer=make_trainer, learning_rates=LEARNING_RATES)
