"""sft and lm: next-token prediction on the trained tokens of each row.

The two differ in their data alone: prompts and responses with the loss on the responses, or plain text with the loss on
every token. The loss is that of ops/label_loss.py, in packs (ops/packed_loss.py) where the model allows it.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from fitune.data.packing.padding import pad_collate
from fitune.methods.context import RunContext
from fitune.methods.runtime import Runtime
from fitune.methods.trainer_parts import generation_eval_of, largest_rows_of, lay_out, listeners, note_step_down
from fitune.trainers.base import FituneTrainer
from fitune.trainers.packed import PackedTrainer


def make_trainer(run: RunContext, model: nn.Module) -> FituneTrainer:
    """The trainer with everything that listens to it."""
    longest = max(row.num_tokens for row in [*run.data.train, *run.data.eval])
    packing = lay_out(run, model, run.data.train, longest, apart=True)
    kind = FituneTrainer if packing.mode == "off" else partial(PackedTrainer, packing=packing)
    return kind(
        model,
        run.arguments,
        train_rows=run.data.train,
        eval_rows=run.data.eval,
        collate=partial(pad_collate, pad_id=run.renderer.tokenizer.pad_token_id),
        extra_metrics=generation_eval_of(run),
        keep_checkpoints=run.keep_checkpoints,
        callbacks=listeners(run),
        on_step_down=note_step_down(run),
        largest_rows=largest_rows_of(run, run.data.train, packing.mode),
    )


RUNTIME = Runtime(make_trainer=make_trainer)
