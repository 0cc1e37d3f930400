"""GGUF files read through transformers, as dense models that can be trained and saved.

Unpacking takes transformers a minute for 270 million weights, so the dense copy is kept in the cache folder, by the
file's content and the type; the copies used last stay, up to `KEPT_BYTES` together.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase

from fitune.cache_folder import cache_folder
from fitune.console import log
from fitune.errors import ModelError

MAGIC = b"GGUF"
# Of dense copies together: a model of 8 billion weights in 16 bits is one of 16 GB, and is unpacked each time.
KEPT_BYTES = 10 * 2**30
SPARE_BYTES = 2 * 2**30  # of the disk, which a copy never takes


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
    kept = _kept_copy(path, dtype)
    options = {"dtype": dtype, "attn_implementation": attention, "output_loading_info": True}
    if (kept / "config.json").exists():
        with suppress(OSError):
            os.utime(kept)
        loaded: Any = AutoModelForCausalLM.from_pretrained(str(kept), **options)
    else:
        gguf = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        loaded = AutoModelForCausalLM.from_pretrained(str(path.parent), **gguf, **options)
        if not loaded[1]["missing_keys"]:
            _keep(loaded[0], kept)
    loaded[0].config._name_or_path = loaded[0].name_or_path = str(path.parent)
    return loaded


def _kept_copy(path: Path, dtype: torch.dtype) -> Path:
    """The folder of a file's dense copy, there or not."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    kind = str(dtype).removeprefix("torch.")
    return cache_folder() / "gguf" / f"{digest[:32]}-{kind}-{transformers.__version__}"


def _keep(model: PreTrainedModel, folder: Path) -> None:
    """Write the copy, whole or not at all, where it has room; one that cannot be written is no fault."""
    size = sum(value.nbytes for value in {value.data_ptr(): value for value in model.parameters()}.values())
    part = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if size > KEPT_BYTES or shutil.disk_usage(folder.parent).free < size + SPARE_BYTES:
            return
        _make_room(folder.parent, size)
        model.save_pretrained(part)
        part.rename(folder)
    except OSError:
        shutil.rmtree(part, ignore_errors=True)
        return
    log(f"the unpacked weights, {size / 1e6:,.0f} MB, are kept in {folder}")


def _make_room(folder: Path, wanted_bytes: int) -> None:
    """Delete the copies that were not used for longest until ``wanted_bytes`` more are allowed."""
    copies = sorted((one for one in folder.iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime)
    sizes = [sum(file.stat().st_size for file in copy.rglob("*") if file.is_file()) for copy in copies]
    for at, copy in enumerate(copies):
        if sum(sizes[at:]) + wanted_bytes <= KEPT_BYTES:
            return
        shutil.rmtree(copy, ignore_errors=True)


def load_gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The file's own tokenizer, with the chat template that it carries."""
    return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name))
