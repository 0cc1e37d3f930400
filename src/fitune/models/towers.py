"""Checkpoints of a text model with towers beside it (pictures, sound): which class opens the whole, what of it is text.

In: a config or a loaded model. Out: transformers' auto class, the text model inside, the names of the modules beside it.
The towers are kept and never trained: the model is trained on text, and what is saved opens again as the whole.
"""

from __future__ import annotations

import inspect
import shutil
from typing import Any, cast

from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.utils.hub import cached_file

from fitune.models.source import ModelSource

# What a processor reads beside the tokenizer's files: transformers' and vLLM's way to pictures.
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json")
# transformers 5.24: Llama4ForConditionalGeneration reads `image_outputs` of an output that has none, and so fails on text.
FAILS_ON_TEXT = frozenset({"llama4"})


def auto_class(config: PretrainedConfig) -> Any:
    """The auto class that opens the checkpoint whole; None for a model that does not continue text.

    A config that both auto classes know (Qwen3.5) is opened as the class that the checkpoint names.
    """
    whole, text = _known(AutoModelForImageTextToText, config), _known(AutoModelForCausalLM, config)
    if config.is_encoder_decoder:
        return None
    if whole is None or (text is not None and config.model_type in FAILS_ON_TEXT):
        return AutoModelForCausalLM if text is not None else None
    if text is None:
        return AutoModelForImageTextToText if _takes_text_alone(whole) else None
    alone = text is not whole and text.__name__ in (config.architectures or ())
    return AutoModelForCausalLM if alone else AutoModelForImageTextToText


def _known(auto: Any, config: PretrainedConfig) -> type[PreTrainedModel] | None:
    classes = auto._model_mapping
    return classes.get(type(config), None)


def _takes_text_alone(kind: type[PreTrainedModel]) -> bool:
    """Whether its forward can do without a picture."""
    inputs = inspect.signature(kind.forward).parameters
    pictures = inputs.get("pixel_values")
    return "input_ids" in inputs and (pictures is None or pictures.default is not inspect.Parameter.empty)


def text_model(model: PreTrainedModel) -> nn.Module:
    """The body that reads token ids: the text model beside the towers where there are any, else all below the head."""
    if auto_class(model.config) is AutoModelForImageTextToText:
        return cast(nn.Module, model.get_decoder())
    body = getattr(model, model.base_model_prefix, None)
    return cast(nn.Module, model.get_decoder() if body is None else body)  # Llama 4's prefix is that of the whole


def decoder_layers(body: nn.Module) -> list[nn.Module]:
    """The decoder layers of a body: its longest list of modules; none where it has no list."""
    lists = [child for child in body.children() if isinstance(child, nn.ModuleList)]
    return list(max(lists, key=len)) if lists else []


def tower_names(model: PreTrainedModel) -> list[str]:
    """Full names of the modules beside the text model and the head; empty for a model of text alone."""
    if auto_class(model.config) is not AutoModelForImageTextToText:
        return []
    text, head = model.get_decoder(), model.get_output_embeddings()
    found: list[str] = []

    def look(module: nn.Module, name: str) -> None:
        for last, child in module.named_children():
            full = f"{name}.{last}".lstrip(".")
            inside = list(child.modules())
            if child is text or child is head:
                continue
            if any(part is text or part is head for part in inside):
                look(child, full)
            elif any(True for _ in child.parameters()):
                found.append(full)

    look(model, "")
    return found


def towers_note(model: PreTrainedModel, config: PretrainedConfig) -> str | None:
    """One line on what stays as it is; None for a model of text alone. `config` is the checkpoint's."""
    if config.model_type in FAILS_ON_TEXT:
        return "the text model is opened, and saved, without its towers: transformers fails on text in the whole model"
    names = tower_names(model)
    if not names:
        return None
    count = sum(value.numel() for name in names for value in model.get_submodule(name).parameters())
    return f"trained on text: {', '.join(names)} ({count:,} parameters) are kept as they are and saved with the result"


def copy_processor(source: ModelSource | None, folder: Any) -> None:
    """Put the base's processor files, where it has any, beside a whole model's weights."""
    if source is None or source.gguf_file:
        return
    for name in PROCESSOR_FILES:
        found = cached_file(
            source.path,
            name,
            revision=source.revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if found is not None:
            shutil.copyfile(found, folder / name)
