"""llama.cpp in a process of its own, through the package cyllama: it answers from a GGUF file, or quantizes one.

    python -m fitune.exporting.gguf.llama_worker < REQUEST > ANSWER        # JSON both

llama.cpp ends the process where it meets something impossible (GGML_ASSERT), so it is never loaded into fitune's own.
"""

from __future__ import annotations

import json
import os
import sys
from array import array
from importlib import import_module
from importlib.metadata import version
from typing import Any

LIBRARY = "cyllama"


def ask(llama: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Ids of texts, and logits over given answers: one after the other into a file, fp32, V a position."""
    model = _model_class(llama)(request["file"], _no_gpu(llama), verbose=False)
    vocabulary = model.get_vocab()
    longest = max((len(prompt) + len(answer) for prompt, answer in _pairs(request)), default=1)
    context = llama.LlamaContext(model, _exact(llama, longest, request["threads"]), False)
    batch = llama.LlamaBatch(n_tokens=longest, embd=0, n_seq_max=1, verbose=False)
    with open(request["logits"], "wb") as out:
        for prompt, answer in _pairs(request):
            context.kv_cache_clear()
            batch.clear()
            ids = [*prompt, *answer[:-1]]
            for place, number in enumerate(ids):
                batch.add(number, place, [0], place >= len(prompt) - 1)
            if context.decode(batch) != 0:
                raise RuntimeError("llama_decode failed")
            for place in range(len(prompt) - 1, len(ids)):
                array("f", context.get_logits_ith(place)).tofile(out)
    return {
        "reader": _reader(llama),
        "vocabulary": vocabulary.n_vocab,
        "ids": [vocabulary.tokenize(text, False, True) for text in request["texts"]],
        "no_ends": [number for number in request["stop_ids"] if not vocabulary.is_eog(number)],
    }


def quantize(llama: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Write a file's weights as another type; which tensors keep more bits llama.cpp decides."""
    asked = llama.LlamaModelQuantizeParams()
    asked.ftype, asked.nthread = request["file_type"], request["threads"]
    llama.model_quantize(request["file"], request["out"], asked)
    return {"reader": _reader(llama)}


def _reader(llama: Any) -> str:
    return f"llama.cpp (ggml {llama.ggml_version()}, {LIBRARY} {version(LIBRARY)})"


def _pairs(request: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    return list(zip(request["prompts"], request["answers"], strict=True))


def _model_class(llama: Any) -> Any:
    """The model, with the size that cyllama 0.2's `get_logits_ith` asks it for and it lacks; 0.7 does without."""

    class Model(llama.LlamaModel):
        @property
        def n_vocab(self) -> int:
            return self.get_vocab().n_vocab

    return Model


def _no_gpu(llama: Any) -> Any:
    asked = llama.LlamaModelParams()
    asked.n_gpu_layers = 0
    return asked


def _exact(llama: Any, longest: int, threads: int) -> Any:
    """A context for `longest` tokens in one batch, its cache in fp32: what is measured is the weights."""
    asked = llama.LlamaContextParams()
    asked.n_ctx = asked.n_batch = asked.n_ubatch = max(longest, 32)
    asked.n_threads = asked.n_threads_batch = threads
    asked.type_k = asked.type_v = 0  # GGML_TYPE_F32
    asked.flash_attn_type = 0  # disabled
    return asked


def main() -> None:
    """Read the request, do what it says, and answer; a failure is one line on stderr."""
    request = json.load(sys.stdin)
    answer = os.dup(1)
    os.dup2(2, 1)  # llama.cpp prints where it likes
    llama = import_module(f"{LIBRARY}.llama.llama_cpp")
    llama.disable_logging()
    try:
        done = {"ask": ask, "quantize": quantize}[request["do"]](llama, request)
    except Exception as error:  # whatever the bindings raise
        sys.exit(f"{type(error).__name__}: {error}")
    with os.fdopen(answer, "w") as out:
        json.dump(done, out)


if __name__ == "__main__":
    main()
