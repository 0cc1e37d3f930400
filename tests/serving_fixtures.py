"""A server on a real port in this process, and adapters that change answers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from http_server import listening
from openai import OpenAI

from fitune.adapters.adapter_folder import base_facts, save_adapter
from fitune.adapters.inject import attach, lora_config
from fitune.evaluation.inference_model import Target
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import load_base
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer
from fitune.serving.app import ServeOptions, make_app
from fitune.serving.engine import Engine


def write_adapter(base_folder: Path, out: Path, seed: int) -> Path:
    """An adapter that changes answers: random A and B."""
    source = resolve(str(base_folder))
    tokenizer = load_tokenizer(source)
    base = load_base(source, tokenizer, resolve_template(tokenizer), detect("cpu"), Precision(torch.float32, "test"))
    torch.manual_seed(seed)
    model = attach(base.model, lora_config(base.model, rank=4, alpha=8))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight += 0.2 * torch.randn_like(weight)
    save_adapter(model, base.tokenizer, base.template, out, base_facts(base))
    return out


@dataclass
class Served:
    client: OpenAI
    url: str
    engine: Engine
    target: Target


@contextmanager
def serving(engine: Engine, options: ServeOptions | None = None) -> Generator[str, None, None]:
    """A server over an engine; gives its address."""
    with listening(make_app(engine.start(), options or ServeOptions())) as url:
        yield url
