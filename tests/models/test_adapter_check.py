"""An adapter's folder that a stranger wrote: each fault costs a sentence with file, value and what is meant."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fitune.adapters.adapter_folder import load_adapter, load_tokenizer_of
from fitune.adapters.locate import read_config
from fitune.errors import ModelError

WEIGHTS = "adapter_model.safetensors"
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def saved(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA as PEFT alone writes it, with facts beside it."""
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_llama), config).save_pretrained(folder)
    (folder / "fitune.json").write_text(json.dumps({"base": {"name": str(tiny_llama), "revision": None}}))
    return folder


def edited(file: str, **changed: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    return lambda folder: save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS)


def written(file: str, text: str) -> Change:
    return lambda folder: (folder / file).write_text(text)


CASES: dict[str, tuple[Change, str]] = {
    "config a list": (written("adapter_config.json", "[]"), "adapter_config.json holds a list where an object belongs"),
    "config nested": (written("adapter_config.json", '{"a":' * 20_000 + "1" + "}" * 20_000), "nested too deeply"),
    "another kind": (edited("adapter_config.json", peft_type="IA3"), "of kind IA3; fitune opens and trains LoRA"),
    "a kind unknown": (edited("adapter_config.json", peft_type="MAGIC"), "of kind MAGIC"),
    "rank a word": (edited("adapter_config.json", r="big"), "says r is 'big'; a whole number from 1 to 65,536"),
    "rank endless": (edited("adapter_config.json", r=10**9), "says r is 1000000000"),
    "rank true": (edited("adapter_config.json", r=True), "says r is True"),
    "rank of a pattern": (edited("adapter_config.json", rank_pattern={"q_proj": 10**9}), "says rank_pattern is"),
    "another rank": (edited("adapter_config.json", r=8), "says r is 8, and .* in the weights has rank 4"),
    "alpha NaN": (edited("adapter_config.json", lora_alpha=float("nan")), "says lora_alpha is nan"),
    "targets elsewhere": (edited("adapter_config.json", target_modules=["no_proj"]), "cannot be loaded: .*no_proj"),
    "targets endless": (edited("adapter_config.json", target_modules="(.+)+x"), "cannot be matched .*modules in a list"),
    "targets broken": (edited("adapter_config.json", target_modules="("), "cannot be matched"),
    "code by name": (edited("adapter_config.json", megatron_config={"a": 1}), "megatron_config, by which PEFT would import"),
    "facts a list": (written("fitune.json", "[1]"), "fitune.json holds a list"),
    "facts bare": (written("fitune.json", "{}"), "fitune.json says base is None"),
    "facts nameless": (written("fitune.json", '{"base": {"name": 3}}'), "says base.name is 3; a name is meant"),
    "facts merged": (edited("fitune.json", merged="x"), "says merged is 'x'"),
    "values NaN": (tensors(lambda t: {name: one * float("nan") for name, one in t.items()}), "NaN or infinite"),
    "tensor too many": (tensors(lambda t: {**t, "extra": torch.zeros(1)}), "a tensor extra, which belongs to no adapter"),
    "tensor too few": (tensors(lambda t: dict(list(t.items())[1:])), "is incomplete: .*missing adapter keys"),
    "weights a pipe": (lambda f: ((f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS)), "is a pipe or device"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_strangers_adapter_costs_a_sentence(saved: Path, tiny_llama: Path, tmp_path: Path, name: str) -> None:
    change, words = CASES[name]
    folder = Path(shutil.copytree(saved, tmp_path / "broken"))
    change(folder)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    began = time.process_time()
    with pytest.raises(ModelError, match=words) as caught:
        load_adapter(base, folder)
    assert time.process_time() - began < 2
    assert "broken" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 800


def test_the_adapter_itself_opens(saved: Path, tiny_llama: Path) -> None:
    model = load_adapter(AutoModelForCausalLM.from_pretrained(tiny_llama), saved)
    assert any("lora_A" in name for name, _ in model.named_parameters()) and read_config(saved)["r"] == 4


def test_a_tokenizer_beside_it_runs_no_code_and_asks_nothing(saved: Path, tiny_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "a"))
    for path in tiny_llama.glob("*token*"):
        shutil.copy(path, folder)
    tokenizer = load_tokenizer_of(folder)
    assert tokenizer is not None and tokenizer.pad_token == "<|im_end|>"
    path = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["evil.Slow", "evil.Fast"]}, "tokenizer_class": "Fast"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Fast: pass\nclass Slow: pass\n")
    try:
        load_tokenizer_of(folder)
    except ModelError as error:
        assert re.search("code of its own", str(error))
    assert not (tmp_path / "ran").exists()
