"""A model to one GGUF file and back: what cannot be one is known before a weight is loaded."""

from __future__ import annotations

from pathlib import Path

import gguf
import torch
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from fitune.console import log
from fitune.errors import ModelError
from fitune.evaluation.inference_model import Target, open_target
from fitune.exporting.forms.export_form import Reopened
from fitune.exporting.gguf.families import family_of, rope_type
from fitune.exporting.gguf.vocabulary import Vocabulary, read_vocabulary
from fitune.exporting.gguf.writer import plan_tensors, read_gguf, require_family, weights_of, write_gguf
from fitune.exporting.new_folder import require_space
from fitune.models.load_base import build_on_meta, input_weight
from fitune.models.template import Template, end_of_turn
from fitune.runs.disk_space import size

READ_BY_TRANSFORMERS = ("llama", "mistral", "qwen2", "qwen3")


def refuse_unwritable(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Raises ModelError when GGUF cannot hold this model, its tokenizer or its template."""
    require_family(config)
    rows = max(config.get_text_config().vocab_size, len(tokenizer))
    shapes = {name: tuple(weight.shape) for name, weight in weights_of(build_on_meta(config, torch.float32)).items()}
    plan_tensors(shapes, config, "f16")
    _vocabulary_of(tokenizer, template, rows)


def write_gguf_file(target: Target, folder: Path, title: str, kind: str) -> Path:
    """NAME-TYPE.gguf, as llama.cpp's users name such files.

    Args:
        target: merged. title: the NAME. kind: a key of GGUF_TYPES.

    Raises:
        RunError: no room on the disk. ModelError: cannot be converted.
    """
    model, renderer = target.plain_model, target.renderer
    weights = weights_of(model)
    planned = plan_tensors({name: tuple(weight.shape) for name, weight in weights.items()}, model.config, kind)
    require_space(folder, sum(tensor.num_bytes for tensor in planned))
    text = renderer.template_text
    template = Template(text, "model", end_of_turn(renderer.tokenizer, text))
    vocabulary = _vocabulary_of(renderer.tokenizer, template, input_weight(model).shape[0])
    for note in vocabulary.notes:
        log(f"note: {note}")
    path = folder / f"{title}-{kind.upper()}.gguf"
    log(f"writing {path.name}")
    num_bytes = write_gguf(path, weights, model.config, vocabulary, kind, title, target.base_name)
    log(f"{path.name}: {len(planned)} tensors, {size(num_bytes)}")
    return path


def reopen_gguf_file(model: PreTrainedModel, path: Path, precision: str, device: str) -> Reopened:
    """The file read by transformers where that knows the family; else by fitune's own way back.

    Args:
        model: a model of the same config, whose weights are overwritten on that way.
    """
    if read_by_transformers(model.config):
        copy = open_target(str(path), device=device, precision=precision)
        if gguf.GGUFReader(path).fields["tokenizer.ggml.model"].contents() == "llama":
            # transformers 5.24 puts no blank after a special token there, where llama.cpp and Llama 2 do.
            note = (
                "token ids were not compared: transformers cuts a file's SentencePiece vocabulary in a way of its own"
            )
            return Reopened(copy.model, None, (note,))
        return Reopened(copy.model, copy.renderer.tokenizer, ("the GGUF file was read back by transformers",))
    read_gguf(path, model, family_of(model.config) or require_family(model.config))
    note = "transformers reads no such GGUF file: the weights were read back by fitune, token ids were not compared"
    return Reopened(model, None, (note,))


def read_by_transformers(config: PretrainedConfig) -> bool:
    """Whether transformers 5.24 opens such a GGUF file: it takes no rotary scaling over, and no head size of Qwen3's."""
    if config.model_type == "qwen3" and config.head_dim != 128:
        return False
    return config.model_type in READ_BY_TRANSFORMERS and rope_type(config) == "default"


def _vocabulary_of(tokenizer: PreTrainedTokenizerBase, template: Template, rows: int) -> Vocabulary:
    """The tokenizer, with this template, in GGUF's terms."""
    tokenizer.chat_template = template.text
    try:
        return read_vocabulary(tokenizer, rows, template.end_of_turn)
    except ModelError as error:
        raise ModelError(
            f"this tokenizer cannot be written as GGUF: {error}. `--to merged` writes any model"
        ) from error
