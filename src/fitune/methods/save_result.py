"""What was trained, written into the run's folder.

In: a `RunContext` and the trained model. Out: the folder of the adapter, or of the whole model.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import cast

from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from fitune.adapters.adapter_folder import base_facts, save_adapter
from fitune.data.render.asking import thinking_of
from fitune.methods.context import RunContext
from fitune.models.base_model import base_model_of
from fitune.models.load_base import LoadedBase
from fitune.trainers.base import FituneTrainer


def save_result(run: RunContext, trainer: FituneTrainer, model: nn.Module) -> Path:
    """The adapter, or the whole model after full fine-tuning; returns its folder."""
    base = run.base
    if run.tuning == "full":
        folder = save_whole_model(base_model_of(model), base, run.folder.model)
    else:
        folder = run.folder.adapter
        save_adapter(cast(PeftModel, model), base.tokenizer, base.template, folder, base_facts(base))
    thinking = False if run.renderer.thinking == "drop" else thinking_of(run.data.train_examples)
    replace(run.renderer.asking, thinking=thinking).write(folder)
    return folder


def save_whole_model(model: PreTrainedModel, base: LoadedBase, folder: Path) -> Path:
    """A full fine-tune: weights in fp32 as they were trained, tokenizer, template; whole or not at all."""
    tokenizer = base.tokenizer
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "model"
        tokenizer.chat_template = base.template.text
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)
    return folder
