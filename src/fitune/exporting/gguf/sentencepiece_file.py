"""tokenizer.model, SentencePiece's own file, from a BPE with byte fallback: llama.cpp's converter reads no other for it.

The format is protobuf's: a tag (field and kind of value), then the value. Fields are those of sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

VARINT, LENGTH, FLOAT = 0, 2, 5
BPE = 2  # trainer_spec.model_type


def write_sentencepiece(path: Path, tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> None:
    """Write the file.

    Args:
        tokens, scores, types: by id; types count as in GGUF, which took them over from SentencePiece.
    """
    pieces = [
        _text(1, token) + _tag(2, FLOAT) + struct.pack("<f", score) + _number(3, kind)
        for token, score, kind in zip(tokens, scores, types, strict=True)
    ]
    spec = _number(3, BPE) + _number(4, len(tokens)) + _number(35, 1)  # vocab_size, byte_fallback
    path.write_bytes(b"".join(_bytes(1, piece) for piece in pieces) + _bytes(2, spec))


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _tag(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _tag(field, VARINT) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _tag(field, LENGTH) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode("utf-8"))
