"""What was trained, written into the run's folder.

In: a `RunContext` and the trained model. Out: the folder of the adapter, or of the whole model, which opens again.
"""

from __future__ import annotations

import copy
import shutil
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel

from fitune.adapters.adapter_folder import base_facts, save_adapter
from fitune.adapters.compatibility import check_belongs, check_shapes
from fitune.errors import ModelError, RunError
from fitune.methods.context import RunContext
from fitune.models.base_model import base_model_of
from fitune.models.hardware import gpus_in_use
from fitune.models.load_base import LoadedBase, input_weight
from fitune.models.towers import copy_processor
from fitune.models.weight_files.safetensors_check import check_weight_files
from fitune.runs.disk_faults import scratch_beside
from fitune.runs.run_folder import RunFolder
from fitune.trainers.base import FituneTrainer


def save_result(run: RunContext, trainer: FituneTrainer, model: nn.Module) -> Path:
    """The adapter, or the whole model after full fine-tuning; returns its folder."""
    base = run.base
    if run.tuning == "full":
        folder = save_whole_model(base_model_of(model), base, run.folder.model)
    else:
        folder = run.folder.adapter
        save_adapter(cast(PeftModel, model), base.tokenizer, base.template, folder, base_facts(base))
    thinking = False if run.renderer.thinking == "drop" else run.data.thinking
    replace(run.renderer.asking, thinking=thinking, system=run.data.system).write(folder)
    return folder


def rehearse_saving(run: RunContext, trainer: FituneTrainer, model: nn.Module) -> None:
    """Save and open again what there is before step one, beside the run and gone afterwards: the end cannot fail then.

    Of a model that is trained in full everything but the weights is tried, which would be written twice.

    Raises:
        RunError: the result of this run could not be saved, or not opened again.
    """
    no_draws = torch.random.fork_rng(devices=gpus_in_use())
    with no_draws, scratch_beside(run.folder.path / "rehearsal") as scratch:
        try:
            if run.tuning == "full":
                _save_beside_weights(base_model_of(model), run.base, Path(scratch))
            else:
                save_result(replace(run, folder=RunFolder(Path(scratch))), trainer, model)
        except (ValueError, TypeError, KeyError, AttributeError, NotImplementedError) as error:
            raise RunError(
                f"the result of this run could not be saved, so it does not begin: {_line(error)}"
            ) from error
        try:
            open_again(model, Path(scratch) if run.tuning == "full" else Path(scratch) / run.folder.adapter.name)
        except RunError as error:
            raise RunError(f"the result of this run would not open again, so it does not begin: {error}") from error


def open_again(model: nn.Module, folder: Path) -> None:
    """Open what was saved, as `fitune chat` would, without loading the base a second time.

    An adapter's tensors must belong to the base at hand and to one without anything on it.

    Raises:
        RunError: it does not open.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        if tokenizer.chat_template is None:
            raise ModelError("its tokenizer has no chat template")
        if (folder / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(folder)
        if (folder / "adapter_config.json").is_file():
            base = base_model_of(model)
            tensors = check_belongs(base, folder)
            check_shapes(_bare_twin(base), folder, tensors)
        else:
            AutoConfig.from_pretrained(folder)
            if any(folder.glob("*.safetensors")):
                check_weight_files(folder, str(folder))
    except (ModelError, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(_line(error)) from error


def _bare_twin(base: PreTrainedModel) -> PreTrainedModel:
    """The base's class without memory and without PEFT's layers, grown as the base was."""
    rows = input_weight(base).shape[0]
    with torch.device("meta"):
        twin = type(base)(copy.deepcopy(base.config))
        if input_weight(twin).shape[0] != rows:
            twin.resize_token_embeddings(rows, mean_resizing=False)
    return twin


def _save_beside_weights(model: PreTrainedModel, base: LoadedBase, folder: Path) -> None:
    """What `save_whole_model` writes beside the weights."""
    tokenizer = base.tokenizer
    tokenizer.chat_template = base.template.text
    model.config.save_pretrained(folder)
    if (generation := cast("GenerationConfig | None", model.generation_config)) is not None:
        generation.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _line(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def save_whole_model(model: PreTrainedModel, base: LoadedBase, folder: Path) -> Path:
    """A full fine-tune: weights in fp32 as they were trained, tokenizer, template; whole or not at all."""
    tokenizer = base.tokenizer
    with scratch_beside(folder) as scratch:
        whole = Path(scratch) / "model"
        tokenizer.chat_template = base.template.text
        model.save_pretrained(whole)
        tokenizer.save_pretrained(whole)
        copy_processor(base.source, whole)
        shutil.rmtree(folder, ignore_errors=True)
        whole.rename(folder)
    return folder
