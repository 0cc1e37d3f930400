"""Whether a model can be written as GGUF or for Ollama, known from its config and tokenizer: before training, not after."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from fitune.data.render.renderer import Renderer
from fitune.errors import ModelError
from fitune.exporting.forms.modelfile import modelfile
from fitune.exporting.gguf.vocabulary import Vocabulary, read_vocabulary
from fitune.exporting.gguf.writer import plan_tensors, weights_of
from fitune.models.load_base import build_on_meta
from fitune.models.template import Template

GGUF_FORMS = ("gguf", "ollama")


def refuse_unconvertible(
    config: Any, tokenizer: Any, template: Template, forms: Iterable[str], base: str, has_adapter: bool = True
) -> None:
    """Raises ModelError when one of the forms cannot hold this model, its tokenizer or its template.

    Args:
        tokenizer: with the template's new tokens added.
        base: the model's name, for the message.
        has_adapter: something is merged into the model's weights.
    """
    forms = list(forms)
    if has_adapter and set(forms) - {"adapter"} and getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"the adapter's base {base} is stored quantized, and a merge needs its 16-bit weights; "
            "name the unquantized model it was made from (`fitune export --base`), or export the adapter alone"
        )
    wanted = [form for form in forms if form in GGUF_FORMS]
    if not wanted:
        return
    rows = max(config.vocab_size, len(tokenizer))
    shapes = {name: tuple(weight.shape) for name, weight in weights_of(build_on_meta(config, torch.float32)).items()}
    plan_tensors(shapes, config, "f16")
    vocabulary_of(tokenizer, template, rows)
    if "ollama" in wanted:
        modelfile("model.gguf", Renderer(tokenizer, template.text))


def vocabulary_of(tokenizer: Any, template: Template, rows: int) -> Vocabulary:
    """The tokenizer, with this template, in GGUF's terms."""
    tokenizer.chat_template = template.text
    try:
        return read_vocabulary(tokenizer, rows, template.end_of_turn)
    except ModelError as error:
        raise ModelError(
            f"this tokenizer cannot be written as GGUF: {error}. `--to merged` writes any model"
        ) from error
