"""A server over a tiny model with two adapters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from serving_fixtures import Served, serving, write_adapter

from fitune.evaluation.inference_model import open_target
from fitune.serving.engine import Engine, served_models


@pytest.fixture(scope="module")
def base_folder(tiny_model: Callable[..., Path]) -> Path:
    return tiny_model("llama", hidden_size=64, intermediate_size=128, initializer_range=0.3)


@pytest.fixture(scope="module")
def adapters(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("served")
    return [write_adapter(base_folder, folder / name, seed) for seed, name in enumerate(("one", "two"), start=1)]


@pytest.fixture(scope="module")
def served(adapters: list[Path]) -> Iterator[Served]:
    target = open_target(str(adapters[0]), device="cpu", precision="fp32")
    engine = Engine(target, served_models(target, "base", "one", {"two": str(adapters[1])}), batch_size=8)
    with serving(engine) as url, OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield Served(client, url, engine, target)


@pytest.fixture
def ask(served: Served) -> Callable[..., Any]:
    def send(model: str = "one", text: str = "hello there", **more: Any) -> Any:
        options = {"max_tokens": 24, **more}
        return served.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": text}], **options
        )

    return send
