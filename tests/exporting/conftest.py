"""Adapters over tiny models, trained for two steps, as folders that a run would have saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fitune.adapters.adapter_folder import base_facts, save_adapter
from fitune.adapters.inject import attach, lora_config
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import load_base
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer


def make_adapter(base_folder: Path, folder: Path, scale: float = 0.1, **options: Any) -> Path:
    """A LoRA over the base, moved away from its start by random values of this scale, saved as fitune saves it."""
    source = resolve(str(base_folder))
    tokenizer = load_tokenizer(source)
    base = load_base(source, tokenizer, resolve_template(tokenizer), detect("cpu"), Precision(torch.float32, "test"))
    torch.manual_seed(0)
    config = lora_config(base.model, rank=4, alpha=8, new_token_ids=base.new_token_ids, **options)
    model = attach(base.model, config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape) * (scale if ".lora_" in name else scale / 5))
    save_adapter(model, tokenizer, base.template, folder, base_facts(base))
    return folder


@pytest.fixture(scope="session")
def adapter_over(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`adapter_over(base_folder, **lora options)` → an adapter's folder."""

    def make(base_folder: Path, **options: Any) -> Path:
        return make_adapter(base_folder, tmp_path_factory.mktemp("adapter") / "tiny-adapter", **options)

    return make


@pytest.fixture(scope="session")
def llama_adapter(adapter_over: Callable[..., Path], tiny_llama: Path) -> Path:
    """An adapter over `tiny_llama`; never write into it."""
    return adapter_over(tiny_llama)
