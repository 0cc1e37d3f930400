"""Files of a model's folder looked at before anything loads them: ordinary files, JSON that can be read, sizes that can
be meant, weights that are safetensors in name and in fact; or refused.

A pickle can run code when it is opened. None is opened here: a file is judged by its first bytes and its own table.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fitune.errors import ModelError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# A zip archive (torch.save since 1.6) and the pickle protocols 2 to 5.
PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
READ_SUFFIXES = frozenset({".json", ".jinja", ".safetensors", ".model", ".txt", ".py", ".bin", ".pt", ".gguf"})
# tokenizer.json is left to its own reader, which limits its depth.
SMALL_JSON = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
              "added_tokens.json", "processor_config.json")  # fmt: skip
# Far beyond every published model: a config with more is a mistake or a trap, and building it would never end.
LARGEST_SIZES = {
    "num_hidden_layers": 10_000, "n_layer": 10_000, "num_layers": 10_000, "num_attention_heads": 100_000,
    "n_head": 100_000, "num_key_value_heads": 100_000, "hidden_size": 10_000_000, "n_embd": 10_000_000,
    "intermediate_size": 100_000_000, "vocab_size": 100_000_000, "num_experts": 100_000, "num_local_experts": 100_000,
}  # fmt: skip
MAY_BE_NONE = ("num_experts", "num_local_experts", "num_key_value_heads")
LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit


def check_files(folder: Path) -> None:
    """Look at everything that loading would open, weights apart.

    Raises:
        ModelError: a pipe, folder or broken link in a file's place; JSON that is damaged or nested without end; a config
            that is no object, or with a size that no model has.
    """
    for path in sorted(folder.iterdir()):
        if path.suffix in READ_SUFFIXES:
            _refuse_odd_file(path)
    for name in SMALL_JSON:
        if (folder / name).exists():
            found = read_json(folder / name)
            if not isinstance(found, dict):
                raise ModelError(f"{folder / name} holds a {type(found).__name__} where an object belongs")
            if name == "config.json":
                for part in (found, *(one for one in found.values() if isinstance(one, dict))):
                    _refuse_odd_sizes(folder / name, part)


def read_json(path: Path) -> Any:
    """What is in a JSON file of a model.

    Raises:
        ModelError: it is damaged, not UTF-8, or nested too deeply.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply to be read. Download it again") from error
    except (ValueError, OSError) as error:
        raise ModelError(f"{path} is damaged: {error}. Download it again") from error


def _refuse_odd_file(path: Path) -> None:
    """Opening a pipe would wait for ever."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ModelError(f"{path} is a link that leads nowhere ({error.strerror})") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise ModelError(f"{path} is {kind}, not an ordinary file. Download the model again")


def _refuse_odd_sizes(path: Path, config: Mapping[str, object]) -> None:
    for name, most in LARGEST_SIZES.items():
        value, least = config.get(name), int(name not in MAY_BE_NONE)
        for one in value if isinstance(value, list) else [value]:  # some families give a size for each layer
            if one is not None and (not isinstance(one, int) or isinstance(one, bool) or not least <= one <= most):
                raise ModelError(
                    f"{path} says {name} is {json.dumps(value)[:60]}; a whole number from {least} to {most:,} is meant"
                )


def check_safetensors(path: Path) -> None:
    """Raises ModelError when the file is a pickle under another name, cut short, or no safetensors file at all.

    The file begins with the length of a JSON header (8 bytes, little-endian), which says where each tensor ends
    (safetensors' own format description).
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        first, opening = file.read(8), file.read(1)
        # A header of 640 bytes begins as a pickle does; behind its length stands a brace.
        if first.startswith(PICKLE_STARTS) and opening != b"{":
            raise ModelError(
                f"{path} is a pickle with the extension of a safetensors file; it was not opened. Delete it"
            )
        length = int.from_bytes(first, "little")
        if len(first) < 8 or length > min(LONGEST_HEADER_BYTES, num_bytes - 8):
            raise ModelError(
                f"{path} is truncated or not a safetensors file: it has {num_bytes:,} bytes. Download it again"
            )
        try:
            header = json.loads(opening + file.read(length - 1))
            ends = [0 + entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
            raise ModelError(f"{path} is damaged: its header cannot be read. Download it again") from error
    wanted = 8 + length + max(ends, default=0)
    if num_bytes != wanted:
        raise ModelError(f"{path} is damaged: it has {num_bytes:,} bytes and should have {wanted:,}. Download it again")


def check_weight_files(folder: Path, name: str, allow_pickled: bool = False) -> bool:
    """Look at all weights of a model's folder; returns whether they are pickled.

    Raises:
        ModelError: none, damaged ones, shards that are missing, or pickled ones that were not asked for.
    """
    index = folder / "model.safetensors.index.json"
    if index.exists():
        for shard in _shards(index):
            if not shard.endswith(".safetensors") or Path(shard).name != shard:
                raise ModelError(f"{index} names {shard} as a file of weights; only safetensors beside it are loaded")
            if not (folder / shard).exists():
                raise ModelError(f"{folder / shard} is missing, and {index.name} names it; download it again")
    if whole := sorted(folder.glob("*.safetensors")):
        for path in whole:
            check_safetensors(path)
        return False
    pickled = sorted(path.name for pattern in PICKLED for path in folder.glob(pattern))
    if not pickled:
        raise ModelError(f"{name} has a config.json but no weights (*.safetensors)")
    if not allow_pickled:
        raise ModelError(
            f"{name} holds pickled weights ({pickled[0]}), which can run code when they are loaded; convert them with "
            f"`fitune export {name} --to merged --allow-pickled`, or set model.allow_pickled for authors you trust"
        )
    return True


def _shards(index: Path) -> set[str]:
    try:
        return {str(shard) for shard in read_json(index)["weight_map"].values()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: it has no weight_map of names. Download it again") from error
