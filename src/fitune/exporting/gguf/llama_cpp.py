"""llama.cpp itself: asked what it answers from a file, and used to quantize one.

The package cyllama (`fitune[gguf]`) holds llama.cpp as a library; programs of llama.cpp on the PATH, or in what LLAMA_CPP
names, are taken where they can more.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import torch
from torch import Tensor

from fitune.errors import ModelError
from fitune.exporting.gguf.converter import checkout
from fitune.exporting.gguf.gguf_types import GgufType
from fitune.exporting.gguf.llama_worker import LIBRARY

INSTALL = "pip install 'fitune[gguf]'"


@dataclass(frozen=True)
class Answered:
    """What llama.cpp says.

    Attributes:
        reader: which llama.cpp.
        logits_TV: one (T, V) a prompt, fp32.
        ids: of each text.
        no_ends: the ids among those asked for at which it does not stop by itself.
    """

    reader: str
    logits_TV: tuple[Tensor, ...]
    ids: tuple[tuple[int, ...], ...]
    no_ends: tuple[int, ...]


def can_ask() -> bool:
    """Whether the extra is installed."""
    return find_spec(LIBRARY) is not None


def ask(
    file: Path,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    texts: Sequence[str] = (),
    stop_ids: Sequence[int] = (),
) -> Answered:
    """What llama.cpp makes of a file: logits that choose each token of each answer, ids of the texts.

    Raises:
        ModelError: it cannot open the file, or ends with a fault of its own.
    """
    with tempfile.TemporaryDirectory() as scratch:
        logits = Path(scratch) / "logits"
        asked = {"do": "ask", "file": str(file), "logits": str(logits), "prompts": prompts, "answers": answers}
        said = _work({**asked, "texts": texts, "stop_ids": stop_ids})
        values = torch.frombuffer(bytearray(logits.read_bytes()), dtype=torch.float32)
    rows_TV = values.view(-1, said["vocabulary"]).split([len(answer) for answer in answers])
    return Answered(said["reader"], tuple(rows_TV), tuple(map(tuple, said["ids"])), tuple(said["no_ends"]))


def program(name: str) -> str | None:
    """A program of llama.cpp: in what LLAMA_CPP names, else on the PATH."""
    named = checkout()
    places = [named / "build/bin" / name, named / "bin" / name, named / name] if named else []
    return next((str(place) for place in places if os.access(place, os.X_OK) and place.is_file()), shutil.which(name))


def require_quantizer(kind: GgufType, importance: bool) -> None:
    """Raises ModelError when nothing here can write this type."""
    if importance:
        missing = [name for name in ("llama-imatrix", "llama-quantize") if program(name) is None]
        if missing:
            raise ModelError(
                f"an importance matrix is measured and used by llama.cpp's own programs, and there is no "
                f"{' and no '.join(missing)} on the PATH; install llama.cpp, or name its folder with LLAMA_CPP"
            )
    elif program("llama-quantize") is None and not can_ask():
        raise ModelError(f"{kind.name} is written by llama.cpp: {INSTALL}, or put llama-quantize on the PATH")


def quantize(file: Path, out: Path, kind: GgufType, importance: Path | None = None) -> None:
    """Write `file`, whole weights, as `kind`.

    Raises:
        ModelError: llama.cpp fails.
    """
    if found := program("llama-quantize"):
        options = ["--imatrix", str(importance)] if importance else []
        run_program([found, *options, str(file), str(out), kind.name.upper(), str(torch.get_num_threads())])
    else:
        number = int(gguf.LlamaFileType[kind.file_type])
        _work({"do": "quantize", "file": str(file), "out": str(out), "file_type": number})


def measure_importance(file: Path, text: str, out: Path) -> None:
    """llama-imatrix on a text: mean squares of what enters each layer.

    Raises:
        ModelError: it fails.
    """
    found = program("llama-imatrix")
    assert found is not None  # asked before
    source = out.with_suffix(".txt")
    source.write_text(text, encoding="utf-8")
    threads = str(torch.get_num_threads())
    run_program(
        [found, "-m", str(file), "-f", str(source), "-o", str(out), "-t", threads, "--parse-special", "-ngl", "0"]
    )


def run_program(command: list[str]) -> None:
    """Run one of llama.cpp's programs; its last line says why it failed."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    if done.returncode != 0:
        raise ModelError(f"{Path(command[0]).name} failed: {_last_line(done.stderr or done.stdout)}")


def _work(request: dict[str, Any]) -> dict[str, Any]:
    """The worker's answer.

    Raises:
        ModelError: it failed, with its last word; llama.cpp's own faults end the process.
    """
    command = [sys.executable, "-m", "fitune.exporting.gguf.llama_worker"]
    asked = json.dumps({**request, "threads": torch.get_num_threads()})
    # Threads that wait in a loop would take the cores from each other where others use them too.
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(command, input=asked, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise ModelError(f"llama.cpp failed on {Path(request['file']).name}: {_last_line(done.stderr)}")
    return json.loads(done.stdout)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it gave no reason"
