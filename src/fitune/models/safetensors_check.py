"""Files of weights looked at before anything loads them: safetensors in name and in fact, whole, or refused.

A pickle can run code when it is opened. None is opened here: a file is judged by its first bytes and its own table.
"""

from __future__ import annotations

import json
from pathlib import Path

from fitune.errors import ModelError

PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
# A zip archive (torch.save since 1.6) and the pickle protocols 2 to 5.
PICKLE_STARTS = (b"PK\x03\x04", *(bytes([0x80, protocol]) for protocol in range(2, 6)))
LONGEST_HEADER_BYTES = 100_000_000  # the format's own limit


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
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
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
        return {str(shard) for shard in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: {error}. Download it again") from error
