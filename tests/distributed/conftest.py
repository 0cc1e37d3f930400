"""Recipes for several ranks: rows of uneven length, more than one micro-batch a step, a last step that is not full."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

WORDS = "cat barn mat piglet sun hen foxes cow ant bee".split()


@pytest.fixture(scope="session")
def uneven_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 rows of one to eight words."""
    generator = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("uneven") / "rows.jsonl"
    with path.open("w") as file:
        for _ in range(37):
            count = int(torch.randint(1, 9, (1,), generator=generator))
            said = [WORDS[at] for at in torch.randint(0, len(WORDS), (count,), generator=generator).tolist()]
            row = {"prompt": f"say {' '.join(said)}", "completion": " ".join(word[::-1] for word in said)}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def job(tiny_llama: Path, uneven_rows: Path) -> Callable[..., dict[str, Any]]:
    """`job(folder, name, section__setting=value)` → what `on_ranks` takes."""

    def make(folder: Path, name: str, **changed: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "fit": "off",
            "model": {"name": str(tiny_llama), "precision": "fp32", "device": "cpu"},
            "data": {"train": str(uneven_rows), "eval_share": 0.2},
            "train": {"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-2, "epochs": 2.5},
            "eval": {"samples": 3, "max_new_tokens": 8},
            "run": {"folder": str(folder), "name": name},
        }
        for key, value in changed.items():
            section, _, setting = key.partition("__")
            if setting:
                values[section] = {**values.get(section, {}), setting: value}
            else:
                values[section] = value
        return {"settings": values}

    return make
