"""Compressed files: what packs them, and their content."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable

from fitune.errors import DataError


def _zstd(content: bytes) -> bytes:
    import pyarrow as pa

    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        return stream.read()


UNPACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".zst": _zstd,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
}


def unpacked(name: str, ending: str, content: bytes) -> bytes:
    """The content of a compressed file.

    Raises:
        DataError: damaged, or packed by something else.
    """
    try:
        return UNPACK[ending](content)
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{name} cannot be unpacked ({error}); it is damaged, or no {ending} file") from error
