"""Compressed files: what packs them, and their content, up to a size that no honest file reaches."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from contextlib import closing
from typing import Any

from fitune.errors import DataError

# Text packs 3 to 20 times smaller; rows that repeat a long prompt, a hundred times.
MOST_TIMES, ALWAYS_BYTES = 100, 256 * 2**20
PIECE_BYTES = 4 * 2**20


def _zstd(content: bytes) -> Any:
    import pyarrow as pa

    return pa.CompressedInputStream(pa.BufferReader(content), "zstd")


UNPACK: dict[str, Callable[[bytes], Any]] = {
    ".gz": lambda content: gzip.GzipFile(fileobj=io.BytesIO(content)),
    ".zst": _zstd,
    ".bz2": lambda content: bz2.BZ2File(io.BytesIO(content)),
    ".xz": lambda content: lzma.LZMAFile(io.BytesIO(content)),  # noqa: SIM115
}


class UnpackedSize:
    """Bytes that came out of a packed file so far; refuses one that grows without end."""

    def __init__(self, name: str, packed_bytes: int):
        self.name, self.most = name, max(ALWAYS_BYTES, MOST_TIMES * packed_bytes)
        self.seen = 0

    def add(self, count: int) -> None:
        """Raises DataError when it is more than any text packs."""
        self.seen += count
        if self.seen > self.most:
            raise DataError(
                f"{self.name} unpacks to more than {self.most / 2**20:,.0f} MiB, over {MOST_TIMES} times its size, as "
                "files do that are made to fill the memory; if it is meant, unpack it into a .jsonl file"
            )


def unpacked(name: str, ending: str, content: bytes) -> bytes:
    """The content of a compressed file.

    Raises:
        DataError: damaged, packed by something else, or larger than text can be that packs so small.
    """
    pieces: list[bytes] = []
    size = UnpackedSize(name, len(content))
    try:
        with closing(UNPACK[ending](content)) as stream:
            while piece := stream.read(PIECE_BYTES):
                size.add(len(piece))
                pieces.append(piece)
        return b"".join(pieces)
    except DataError:
        raise
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{name} cannot be unpacked ({error}); it is damaged, or no {ending} file") from error
