"""What was trained, written into the run's folder.

In: a `RunContext` and the trained model. Out: the folder of the adapter, or of the whole model.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from fitune.adapters.adapter_folder import base_facts, save_adapter
from fitune.data.render.asking import thinking_of
from fitune.methods.context import RunContext
from fitune.models.load_base import LoadedBase
from fitune.models.towers import copy_processor


def save_result(run: RunContext, trainer: Any, model: Any) -> Path:
    """The adapter, or the whole model after full fine-tuning; returns its folder."""
    base = run.base
    if run.tuning == "full":
        folder = save_whole_model(model, base, run.folder.model)
    else:
        folder = run.folder.adapter
        save_adapter(model, base.tokenizer, base.template, folder, base_facts(base))
    thinking = False if run.renderer.thinking == "drop" else thinking_of(run.data.train_examples)
    replace(run.renderer.asking, thinking=thinking).write(folder)
    return folder


def save_whole_model(model: Any, base: LoadedBase, folder: Path) -> Path:
    """A full fine-tune: weights in fp32 as they were trained, tokenizer, template; whole or not at all."""
    tokenizer: Any = base.tokenizer
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        whole = Path(scratch) / "model"
        tokenizer.chat_template = base.template.text
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        copy_processor(base.source, whole)
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)
    return folder
