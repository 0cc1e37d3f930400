"""A model to one GGUF file, and what answers from it: who writes it is known before a weight is loaded.

Five families are written here, tensor by tensor out of memory, with the same bits as llama.cpp's converter gives; that
converter writes every other. llama.cpp quantizes to its K-quants, and answers from the file where it is installed.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path
from typing import cast

import gguf
import torch
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from fitune.console import log
from fitune.data.render.renderer import Renderer
from fitune.errors import ModelError
from fitune.evaluation.inference_model import Target, open_target
from fitune.exporting.fidelity import Asked, Probe
from fitune.exporting.forms.export_form import Exportable, Reopened
from fitune.exporting.gguf.converted_model import convert_model, refuse_unconverted
from fitune.exporting.gguf.converter import CONVERTED
from fitune.exporting.gguf.families import faults, rope_type
from fitune.exporting.gguf.gguf_types import GGUF_TYPES
from fitune.exporting.gguf.llama_cpp import INSTALL, ask, can_ask, measure_importance, quantize, require_quantizer
from fitune.exporting.gguf.vocabulary import Vocabulary, read_vocabulary
from fitune.exporting.gguf.writer import plan_tensors, weights_of, write_gguf
from fitune.exporting.new_folder import require_space
from fitune.models.load_base import build_on_meta, input_weight
from fitune.models.template import Template, end_of_turn
from fitune.runs.disk_space import size

READ_BY_TRANSFORMERS = ("llama", "mistral", "qwen2", "qwen3")


def _base_name(target: Target) -> str:
    """What the base is called: its id on the hub, or its folder's own name, not where that lies on this machine."""
    on_hub = target.source is None or target.source.kind == "hub"
    return target.base_name if on_hub else Path(target.base_name).name


def refuse_unwritable(model: Exportable) -> None:
    """Raises ModelError when GGUF cannot hold this model, its tokenizer or its template, or nothing here writes the type."""
    kind, converted = GGUF_TYPES[model.gguf_type], needs_converter(model.config, model.tokenizer, model.template)
    if model.importance and not kind.packed:
        raise ModelError(f"an importance matrix is for types below 16 bits, and {kind.name} has {kind.bits}")
    if kind.by_llama_cpp or model.importance or (converted and kind.name not in CONVERTED):
        require_quantizer(kind, model.importance)
    if converted:
        model.tokenizer.chat_template = model.template.text
        refuse_unconverted(model.config, model.tokenizer)


def needs_converter(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, template: Template) -> bool:
    """Whether llama.cpp's converter has to write this model: fitune's own writer lacks the family or the tokenizer."""
    if faults(config):
        return True
    rows = max(config.get_text_config().vocab_size, len(tokenizer))
    shapes = {name: tuple(weight.shape) for name, weight in weights_of(build_on_meta(config, torch.float32)).items()}
    try:
        plan_tensors(shapes, config, "f16")
        _vocabulary_of(tokenizer, template, rows)
    except ModelError:
        return True
    return False


def write_gguf_file(target: Target, folder: Path, title: str, kind: str, importance: str | None = None) -> Path:
    """NAME-TYPE.gguf, as llama.cpp's users name such files.

    Args:
        target: merged. title: the NAME. kind: a key of GGUF_TYPES.
        importance: text on which llama.cpp measures the importance matrix of the quantization.

    Raises:
        RunError: no room on the disk. ModelError: cannot be converted.
    """
    path, stored = folder / f"{title}-{kind.upper()}.gguf", GGUF_TYPES[kind]
    template = _template_of(target.renderer)
    converted = needs_converter(target.plain_model.config, target.renderer.tokenizer, template)
    write = convert_model if converted else _write_own
    if not (stored.by_llama_cpp or importance or (converted and kind not in CONVERTED)):
        log(f"writing {path.name}{' by llama.cpp' if converted else ''}")
        write(target, path, kind)
        log(f"{path.name}: {size(path.stat().st_size)}")
        return path
    whole = "f32" if next(target.plain_model.parameters()).dtype == torch.float32 else "bf16"
    with tempfile.TemporaryDirectory(dir=folder, prefix=".whole-") as scratch:
        unpacked = Path(scratch) / f"{title}.gguf"
        log(f"writing {whole} for llama.cpp to quantize")
        write(target, unpacked, whole)
        matrix = None
        if importance:
            log(f"measuring the importance matrix on {len(importance):,} characters")
            matrix = Path(scratch) / "importance.gguf"
            measure_importance(unpacked, importance, matrix)
        require_space(folder, unpacked.stat().st_size // 2)
        log(f"writing {path.name} by llama.cpp")
        quantize(unpacked, path, stored, matrix)
    log(f"{path.name}: {size(path.stat().st_size)}")
    return path


def _write_own(target: Target, path: Path, kind: str) -> None:
    """By fitune's own writer."""
    model, renderer = target.plain_model, target.renderer
    weights = weights_of(model)
    planned = plan_tensors({name: tuple(weight.shape) for name, weight in weights.items()}, model.config, kind)
    require_space(path.parent, sum(tensor.num_bytes for tensor in planned))
    vocabulary = _vocabulary_of(renderer.tokenizer, _template_of(renderer), input_weight(model).shape[0])
    for note in vocabulary.notes:
        log(f"note: {note}")
    write_gguf(path, weights, model.config, vocabulary, kind, path.stem, _base_name(target))


def reopen_gguf_file(target: Target, path: Path, precision: str, device: str) -> Reopened:
    """What answers from the file: llama.cpp where it is installed, else transformers where that can, else nothing."""
    if can_ask():
        return Reopened(None, None, ask=partial(_ask_llama_cpp, path, target.renderer))
    missing = f"llama.cpp was not asked ({INSTALL} lets it answer from the file)"
    if read_by_transformers(target.plain_model.config):
        copy = open_target(str(path), device=device, precision=precision)
        if gguf.GGUFReader(path).fields["tokenizer.ggml.model"].contents() == "llama":
            # transformers 5.24 puts no blank after a special token there, where llama.cpp and Llama 2 do.
            note = (
                "token ids were not compared: transformers cuts a file's SentencePiece vocabulary in a way of its own"
            )
            return Reopened(copy.model, None, (note, missing))
        return Reopened(copy.model, copy.renderer.tokenizer, ("the GGUF file was read back by transformers", missing))
    return Reopened(None, None, (f"the GGUF file was not read back: {missing}",))


def read_by_transformers(config: PretrainedConfig) -> bool:
    """Whether transformers 5.24 opens such a GGUF file: it takes no rotary scaling over, and no head size of Qwen3's."""
    if config.model_type == "qwen3" and config.head_dim != 128:
        return False
    return config.model_type in READ_BY_TRANSFORMERS and rope_type(config) == "default"


def _ask_llama_cpp(path: Path, renderer: Renderer, probe: Probe) -> Asked:
    """The probe put to llama.cpp: texts by the file's own template, ids and logits by llama.cpp."""
    end = end_of_turn(renderer.tokenizer, renderer.template_text)
    try:
        ends = [renderer.tokenizer.convert_tokens_to_ids(end)] if end else []
        said = ask(path, probe.prompts, probe.answers, _texts(path, renderer, probe), ends)
    except ModelError as error:
        fault = f"nothing was compared: {error}. The file may still be good for a newer llama.cpp"
        return Asked(None, None, faults=(fault,))
    faults = (f"{end} ends an answer, and llama.cpp goes on after it",) if said.no_ends else ()
    return Asked(said.logits_TV, said.ids, (f"answers are those of {said.reader}",), faults)


def _texts(path: Path, renderer: Renderer, probe: Probe) -> list[str]:
    """The probe's conversations as the template in the file writes them."""
    held = gguf.GGUFReader(path).fields.get("tokenizer.chat_template")
    if held is None:
        raise ModelError(f"{path.name} holds no chat template")
    return [
        cast(
            str,
            renderer.tokenizer.apply_chat_template(
                cast("list[dict[str, str]]", [dict(message) for message in messages]),
                chat_template=held.contents(),
                tokenize=False,
                add_generation_prompt=True,
            ),
        )
        for messages in probe.conversations
    ]


def _template_of(renderer: Renderer) -> Template:
    text = renderer.template_text
    return Template(text, "model", end_of_turn(renderer.tokenizer, text))


def _vocabulary_of(tokenizer: PreTrainedTokenizerBase, template: Template, rows: int) -> Vocabulary:
    """The tokenizer, with this template, in GGUF's terms."""
    tokenizer.chat_template = template.text
    return read_vocabulary(tokenizer, rows, template.end_of_turn)
