"""GGUF files read through transformers, as dense models that can be trained and saved."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from fitune.errors import ModelError

MAGIC = b"GGUF"


def check_gguf(path: Path) -> None:
    """Raises ModelError when the file is not a whole GGUF file: its magic, header and tensor extents are read."""
    from gguf import GGUFReader

    with path.open("rb") as file:
        magic = file.read(4)
    if magic != MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it begins with {magic!r} instead of {MAGIC!r}")
    try:
        reader = GGUFReader(path)
        count = len(reader.tensors)
    except Exception as error:  # the reader maps the file and fails in many ways when it is cut short
        raise ModelError(f"{path} is damaged or truncated: {error}. Download it again") from error
    if count == 0:
        raise ModelError(f"{path} contains no tensors; download it again")


def load_dense(
    path: Path, dtype: torch.dtype, attention: str | None = None
) -> tuple[PreTrainedModel, dict[str, Collection[str]]]:
    """The file's model with every weight unpacked (a packed one can be neither trained nor saved), and what was loaded.

    The second is transformers' loading report; its `missing_keys` are weights that the file does not have.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        str(path.parent),
        gguf_file=path.name,
        dtype=dtype,
        attn_implementation=attention,
        quantization_config=GgufConfig(dequantize=True),
        output_loading_info=True,
    )
    return loaded


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The file's own tokenizer, with the chat template that it carries."""
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name))
