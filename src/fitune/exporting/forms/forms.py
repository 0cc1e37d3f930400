"""The four forms of an export: how each is written, and how it is opened again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf

from fitune.console import log
from fitune.errors import ModelError
from fitune.evaluation.inference_model import Target, open_target
from fitune.exporting.convertible import GGUF_FORMS, vocabulary_of
from fitune.exporting.forms.modelfile import modelfile
from fitune.exporting.gguf.families import family_of, rope_type
from fitune.exporting.gguf.writer import plan_tensors, read_gguf, require_family, weights_of, write_gguf
from fitune.exporting.merge_weights import sixteen_bit
from fitune.exporting.new_folder import require_space
from fitune.models.template import Template, end_of_turn
from fitune.runs.disk_space import folder_bytes, size

FORMS = ("adapter", "merged", *GGUF_FORMS)
SHARD = "4GB"
READ_BY_TRANSFORMERS = ("llama", "mistral", "qwen2", "qwen3")


def loss_of(form: str, gguf_type: str) -> str:
    """What a form does to the weights, in the words of `fidelity.THRESHOLDS`."""
    if form == "adapter":
        return "same"
    bits = {"q8_0": "8-bit", "q4_0": "4-bit", "q4_1": "4-bit"}
    return bits.get(gguf_type, "16-bit") if form in GGUF_FORMS else "16-bit"


def write(form: str, target: Target, folder: Path, title: str, gguf_type: str, adapter: Path | None) -> Path:
    """Write the target into the folder; returns what is handed on: the folder itself, or the GGUF file.

    Args:
        target: merged, for every form but adapter.
        adapter: the adapter's own folder, for the form adapter.

    Raises:
        RunError: no room on the disk. ModelError: cannot be converted.
    """
    if form == "adapter":
        if adapter is None:
            raise ModelError("there is no adapter to export")
        return write_adapter(adapter, folder)
    if form == "merged":
        return write_merged(target, folder)
    path = write_gguf_file(target, folder, title, gguf_type)
    if form == "ollama":
        (folder / "Modelfile").write_text(modelfile(path.name, target.renderer), encoding="utf-8")
    return path


def write_adapter(adapter: Path, folder: Path) -> Path:
    """A copy of the adapter's folder: PEFT's two files, tokenizer, template, fitune.json, card."""
    require_space(folder, folder_bytes(adapter))
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    return folder


def write_merged(target: Target, folder: Path) -> Path:
    """Sharded safetensors in 16 bits, with config, generation settings, tokenizer and template."""
    model, tokenizer = target.model, target.renderer.tokenizer
    dtype = sixteen_bit(target.source)
    require_space(folder, 2 * model.num_parameters())
    log(f"writing {str(dtype).removeprefix('torch.')} safetensors")
    model.to(dtype)
    habits = model.generation_config
    if habits is not None and not habits.do_sample:
        # transformers refuses to save sampling values beside greedy decoding, which some models publish.
        habits.temperature = habits.top_p = habits.top_k = None
    model.save_pretrained(folder, max_shard_size=SHARD)
    tokenizer.chat_template = target.renderer.template_text
    tokenizer.save_pretrained(folder)
    return folder


def write_gguf_file(target: Target, folder: Path, title: str, kind: str) -> Path:
    """NAME-TYPE.gguf, as llama.cpp's users name such files."""
    model, renderer = target.model, target.renderer
    weights = weights_of(model)
    planned = plan_tensors({name: tuple(weight.shape) for name, weight in weights.items()}, model.config, kind)
    require_space(folder, sum(tensor.num_bytes for tensor in planned))
    vocabulary = vocabulary_of(renderer.tokenizer, _template(target), model.get_input_embeddings().weight.shape[0])
    for note in vocabulary.notes:
        log(f"note: {note}")
    path = folder / f"{title}-{kind.upper()}.gguf"
    log(f"writing {path.name}")
    num_bytes = write_gguf(path, weights, model.config, vocabulary, kind, title, target.base_name)
    log(f"{path.name}: {len(planned)} tensors, {size(num_bytes)}")
    return path


def reopen(form: str, target: Target, main: Path, precision: str, device: str) -> tuple[Any, Any, tuple[str, ...]]:
    """The copy as its users open it: (model, tokenizer or None, notes).

    A GGUF file is read by transformers where that knows the family; else by fitune's own way back, into the target's
    model, whose weights are overwritten.
    """
    if form not in GGUF_FORMS:
        copy = open_target(str(main), device=device, precision=precision)
        return copy.model, copy.renderer.tokenizer, ()
    config = target.model.config
    if read_by_transformers(config):
        copy = open_target(str(main), device=device, precision=precision)
        if gguf.GGUFReader(main).fields["tokenizer.ggml.model"].contents() == "llama":
            # transformers 5.24 puts no blank after a special token there, where llama.cpp and Llama 2 do.
            note = (
                "token ids were not compared: transformers cuts a file's SentencePiece vocabulary in a way of its own"
            )
            return copy.model, None, (note,)
        return copy.model, copy.renderer.tokenizer, ("the GGUF file was read back by transformers",)
    family = family_of(config) or require_family(config)
    read_gguf(main, target.model, family)
    note = "transformers reads no such GGUF file: the weights were read back by fitune, token ids were not compared"
    return target.model, None, (note,)


def read_by_transformers(config: Any) -> bool:
    """Whether transformers 5.24 opens such a GGUF file: it takes no rotary scaling over, and no head size of Qwen3's."""
    if config.model_type == "qwen3" and config.head_dim != 128:
        return False
    return config.model_type in READ_BY_TRANSFORMERS and rope_type(config) == "default"


def _template(target: Target) -> Template:
    text = target.renderer.template_text
    return Template(text, "model", end_of_turn(target.renderer.tokenizer, text))
