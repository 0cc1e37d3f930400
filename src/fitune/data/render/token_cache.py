"""Rows are tokenized piece by piece while others are still rendered; the tokens are kept, and mapped into memory.

In: a renderer and rendered rows. Out: pieces of tokens, from files of the cache, or made now and kept there. A file's name
is a hash of all that its tokens depend on: the texts, their trained spans, the tokenizer itself and the version of its
library. So nothing can be stale, and a file may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import numpy as np

from fitune.cache_folder import cache_folder, keep
from fitune.data.examples import Rendered
from fitune.data.render.encode import EncodedRow
from fitune.data.render.renderer import Renderer
from fitune.data.token_table import TokenPiece, TokenRows
from fitune.errors import DataError

# Fewer rows are tokenized in less than a second.
FEWEST_ROWS = 2_000
# A piece ends where its texts have so many characters: those of two pieces are in memory at a time. Each file that is mapped
# is open, so that later pieces of a large set are longer.
PIECE_CHARACTERS = 4_000_000
ROW_CHARACTERS = 200  # what a short row counts at least
LONGER_EVERY = 64
KEPT_BYTES = 4 << 30
ARRAYS = ("ids", "trained", "ends", "sources")

Measure = Callable[[TokenPiece], Any]


@dataclass(frozen=True, eq=False)
class StoredPiece:
    """A piece with what was known of its rendered rows. R rows of tokens.

    Attributes:
        owners: R numbers that came with the rendered rows.
        numbers: R row numbers.
        texts: R hashes of the texts.
        measured: what ``measure`` said of it.
        faults: rendered rows that cannot be tokenized: (owner, row number, why).
    """

    piece: TokenPiece
    owners: np.ndarray
    numbers: np.ndarray
    texts: np.ndarray
    measured: Any
    faults: tuple[tuple[int, int, str], ...]


class TokenStore:
    """Takes rendered rows as they come and tokenizes them, in a second thread where there are many.

    Args:
        kept: keep the pieces in the cache, and look for them there.
        measure: asked of each piece while its tokens are in memory.
    """

    def __init__(self, renderer: Renderer, kept: bool, measure: Measure = lambda _: None):
        self._renderer, self._measure = renderer, measure
        self._tokenizer = renderer.tokenizer.backend_tokenizer.to_str() if kept else None
        self._pool = ThreadPoolExecutor(1) if kept else None
        self._waiting: list[Rendered] = []
        self._owners: list[int] = []
        self._characters = 0
        self._running: Future[StoredPiece] | None = None
        self._pieces: list[StoredPiece] = []

    def add(self, rendered: Sequence[Rendered], owner: int) -> None:
        """The rendered rows of one conversation."""
        for row in rendered:
            self._waiting.append(row)
            self._owners.append(owner)
            self._characters += max(len(row.text), ROW_CHARACTERS)
            if self._characters >= PIECE_CHARACTERS << len(self._pieces) // LONGER_EVERY:
                self._flush()

    def finish(self) -> list[StoredPiece]:
        """All pieces, in order."""
        if self._waiting:
            self._flush()
        self._wait()
        if self._tokenizer:
            _drop_old(cache_folder() / "tokens")
        return self._pieces

    def close(self) -> None:
        """End the thread."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _flush(self) -> None:
        waiting, owners = self._waiting, self._owners
        self._waiting, self._owners, self._characters = [], [], 0
        self._wait()
        if self._pool:
            self._running = self._pool.submit(self._stored, waiting, owners)
        else:
            self._pieces.append(self._stored(waiting, owners))

    def _wait(self) -> None:
        if self._running:
            running, self._running = self._running, None
            self._pieces.append(running.result())

    def _stored(self, rendered: Sequence[Rendered], owners: Sequence[int]) -> StoredPiece:
        faults: list[tuple[int, str]] = []
        path = self._path(rendered)
        piece = _read(path, len(rendered)) if path else None
        if piece is None:
            piece = made = _piece_of(list(self._renderer.encoder.rows(rendered, faults)))
            if path and not faults:
                keep(path, lambda file: _write(file, made))
        measured = self._measure(piece)
        if path:
            piece = _read(path, len(rendered), mapped=True) or piece
        return StoredPiece(
            piece=piece,
            owners=np.asarray(owners, np.int64)[piece.sources],
            numbers=np.asarray([row.row_number for row in rendered], np.int64)[piece.sources],
            texts=np.asarray([hash(row.text) for row in rendered], np.int64)[piece.sources],
            measured=measured,
            faults=tuple((owners[at], rendered[at].row_number, why) for at, why in faults),
        )

    def _path(self, rendered: Sequence[Rendered]) -> Path | None:
        if self._tokenizer is None:
            return None
        return cache_folder() / "tokens" / f"{content_key(self._tokenizer, self._renderer.marks.texts, rendered)}.rows"


def tokenize_kept(renderer: Renderer, rendered: Sequence[Rendered]) -> TokenRows:
    """`Renderer.tokenize`, with a memory.

    Raises:
        DataError: as `Renderer.tokenize`.
    """
    store = TokenStore(renderer, kept=len(rendered) >= FEWEST_ROWS)
    try:
        for owner, row in enumerate(rendered):
            store.add([row], owner)
        stored = store.finish()
    finally:
        store.close()
    if fault := next((why for one in stored for _, _, why in one.faults), None):
        raise DataError(fault)
    numbers = np.concatenate([one.numbers for one in stored]) if stored else np.empty(0, np.int64)
    return TokenRows([one.piece for one in stored], numbers)


def content_key(tokenizer: str, marks: Sequence[str], rendered: Sequence[Rendered]) -> str:
    """Hash of everything that tokens and trained marks depend on; ``tokenizer`` is the whole of it as JSON."""
    found = hashlib.sha256(f"3 {metadata.version('tokenizers')} {tokenizer} {marks}".encode("utf-8", "surrogatepass"))
    for row in rendered:
        text = row.text.encode("utf-8", "surrogatepass")
        found.update(f"\n{len(text)} {row.spans} {row.prompts} ".encode() + text)
    return found.hexdigest()[:40]


def _piece_of(rows: Sequence[EncodedRow]) -> TokenPiece:
    """Arrays of rows behind each other."""
    if not rows:
        return TokenPiece(np.empty(0, np.int32), np.empty(0, bool), np.empty(0, np.int64), np.empty(0, np.int64))
    return TokenPiece(
        ids=np.concatenate([row.ids for row in rows]),
        trained=np.concatenate([row.trained for row in rows]),
        ends=np.cumsum([len(row.ids) for row in rows]),
        sources=np.asarray([row.source for row in rows], np.int64),
    )


def _write(file: IO[bytes], piece: TokenPiece) -> None:
    for name in ARRAYS:
        np.save(file, getattr(piece, name))


def _read(path: Path, rendered: int, mapped: bool = False) -> TokenPiece | None:
    """The piece in a file; None when it is not there, was damaged, or is not of so many rendered rows."""
    try:
        with path.open("rb") as file:
            arrays = [_mapped(path, file) if mapped else np.load(file) for _ in ARRAYS]
            whole = not file.read(1)
        os.utime(path)  # the ones used longest ago are dropped first
    except (OSError, ValueError, EOFError):
        return None
    piece = TokenPiece(*arrays)
    known = piece.ends[-1] == len(piece.ids) == len(piece.trained) and len(piece.ends) == len(piece.sources)
    return piece if whole and known and piece.sources[-1] == rendered - 1 else None


def _mapped(path: Path, file: IO[bytes]) -> np.ndarray:
    """The array that begins at the file's place, mapped where it is long."""
    begin = file.tell()
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, kind = read_header(file)
    if kind not in (np.dtype(np.int32), np.dtype(bool)):  # ends and sources are asked for at every row
        file.seek(begin)
        return np.load(file)
    found = np.memmap(path, dtype=kind, mode="r", offset=file.tell(), shape=shape)
    file.seek(found.nbytes, os.SEEK_CUR)
    return found.view(np.ndarray)


def _drop_old(folder: Path) -> None:
    """Delete the files used longest ago, of more bytes than are kept."""
    with suppress(OSError):
        found = sorted(((file.stat(), file) for file in folder.iterdir()), key=lambda one: -one[0].st_mtime)
        kept = np.cumsum([facts.st_size for facts, _ in found])
        for (_, file), total in zip(found, kept.tolist(), strict=True):
            if total > KEPT_BYTES:
                file.unlink(missing_ok=True)
