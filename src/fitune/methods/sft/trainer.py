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
from fitune.trainers.base import FituneTrainer
from fitune.trainers.callbacks import StopOnInterrupt
from fitune.trainers.packed import PackedTrainer
from fitune.trainers.worst_case_batch import largest_rows
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
) -> FituneTrainer:
    """The trainer with everything that listens to it."""
    callbacks = listeners(settings, run, setup, interrupt)
    packing = lay_out(settings, setup, model, arguments, setup.data.train)
    kind = FituneTrainer if packing.mode == "off" else partial(PackedTrainer, packing=packing)
    micro = settings.train.micro_batch_size or settings.train.batch_size
    batches = batches_of(settings, micro, packing.mode, len(setup.data.train))
    can_tell = setup.hardware.device == "cuda"  # a CPU kills the process instead of telling it
    trainer = kind(
        model,
        arguments,
        train_rows=setup.data.train,
        test_rows=setup.data.test,
        collate=partial(pad_collate, pad_id=setup.tokenizer.pad_token_id),
        extra_metrics=generation_eval_of(settings, run, setup),
        keep_checkpoints=settings.run.keep_checkpoints,
        callbacks=callbacks,
        on_step_down=partial(manifests.append, run.manifest, "memory", "step_downs"),
        largest_rows=partial(largest_rows, setup.data.train, batches) if can_tell else None,
    )
    return bind_callbacks(trainer, callbacks)


METHOD = Method(adapt=adapt, make_trainer=make_trainer, learning_rates=LEARNING_RATES)
