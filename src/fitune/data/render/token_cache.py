"""Tokens of rows that were tokenized before, kept by content.

In: a renderer and rendered rows. Out: their token rows, from a file of the cache, or made now and kept there.
The file's name is a hash of all that the tokens depend on: the texts, their trained spans, the tokenizer itself and the
version of its library. So nothing can be stale, and a file may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import metadata
from itertools import groupby
from pathlib import Path

import numpy as np

from fitune.cache_folder import cache_folder, keep
from fitune.data.examples import Rendered
from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import TokenRow

# Fewer rows are tokenized in less than a second.
FEWEST_ROWS = 2_000
KEPT_FILES = 16


def tokenize_kept(renderer: Renderer, rendered: Sequence[Rendered]) -> list[TokenRow]:
    """`Renderer.tokenize`, with a memory."""
    backend = getattr(renderer.tokenizer, "backend_tokenizer", None)
    if len(rendered) < FEWEST_ROWS or backend is None:
        return list(renderer.tokenize(rendered))
    path = cache_folder() / "tokens" / f"{content_key(backend.to_str(), rendered)}.npz"
    rows = _read(path, rendered)
    if rows is None:
        rows = list(renderer.tokenize(rendered))
        _write(path, rows)
    return rows


def content_key(tokenizer: str, rendered: Sequence[Rendered]) -> str:
    """Hash of everything that tokens and trained marks depend on; ``tokenizer`` is the whole of it as JSON."""
    found = hashlib.sha256(f"2 {metadata.version('tokenizers')} {tokenizer}".encode())
    for row in rendered:
        text = row.text.encode("utf-8", "surrogatepass")
        found.update(f"\n{len(text)} {row.spans} {row.prompts} ".encode() + text)
    return found.hexdigest()[:40]


def _read(path: Path, rendered: Sequence[Rendered]) -> list[TokenRow] | None:
    """The rows of a file; None when it is not there, or was damaged."""
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            ids, trained, ends = file["ids"], np.unpackbits(file["trained"]), np.cumsum(file["lengths"])
            conversations = file["conversations"]
        os.utime(path)  # the ones used longest ago are dropped first
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    known = [number for number, _ in groupby(row.row_number for row in rendered)]
    if len(ends) < len(rendered) or len(conversations) != len(ends) or ends[-1] != len(ids):
        return None
    if conversations[-1] != len(known) - 1:
        return None
    numbers = [known[at] for at in conversations.tolist()]
    return list(_rows(ids, trained[: len(ids)].astype(bool), ends.tolist(), numbers))


def _rows(ids: np.ndarray, trained: np.ndarray, ends: Sequence[int], numbers: Sequence[int]) -> Iterator[TokenRow]:
    """Rows that are views into the tokens of all."""
    start = 0
    for number, end in zip(numbers, ends, strict=True):
        yield TokenRow(ids[start:end], trained[start:end], number)
        start = end


def _conversations(rows: Sequence[TokenRow]) -> list[int]:
    """Which conversation each row is of, counted from 0: where a row stands in its file is not kept."""
    grouped = groupby(rows, key=lambda row: row.row_number)
    return [at for at, (_, group) in enumerate(grouped) for _ in group]


def _write(path: Path, rows: Sequence[TokenRow]) -> None:
    """Keep the rows, and drop the files used longest ago."""
    ids = np.concatenate([row.arrays[0] for row in rows])
    trained = np.packbits(np.concatenate([row.arrays[1] for row in rows]))
    conversations = np.asarray(_conversations(rows), np.int64)
    lengths = np.asarray([row.num_tokens for row in rows], np.int64)
    keep(path, lambda file: np.savez(file, ids=ids, trained=trained, conversations=conversations, lengths=lengths))
    with suppress(OSError):
        files = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime)
        for old in files[:-KEPT_FILES]:
            old.unlink(missing_ok=True)
