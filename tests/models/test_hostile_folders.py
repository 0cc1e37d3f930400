"""Model folders that lie or are broken: one sentence each that names the file, within two seconds."""

from __future__ import annotations

import json
import os
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fitune.config.sections import Settings
from fitune.errors import ModelError
from fitune.models.tokenizer import library_words
from fitune.models.weight_files.safetensors_check import check_files
from fitune.training.run import train

DEEP = '{"a":' * 20_000 + "1" + "}" * 20_000
WEIGHTS = "model.safetensors"


def written(name: str, content: str | bytes) -> Callable[[Path], None]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(raw) and None


def config(**changed: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))

    return change


def header(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def instead(name: str, make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return change


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def splitting(folder: Path) -> None:
    path = folder / "tokenizer.json"
    pattern = {"type": "Split", "pattern": {"Regex": "(a+)+$|(.*)*x"}, "behavior": "Isolated", "invert": False}
    path.write_text(json.dumps({**json.loads(path.read_text()), "pre_tokenizer": pattern}))


BIG_LOOP = (
    "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}{{ messages[0]['content'] }}"
)
CASES: dict[str, tuple[Callable[[Path], None], str]] = {
    "config nested": (written("config.json", DEEP), r"config.json is nested too deeply"),
    "config cut": (written("config.json", '{"model_type": "lla'), r"config.json is damaged"),
    "config a list": (written("config.json", "[1]"), r"config.json holds a list where an object belongs"),
    "config in UTF-16": (written("config.json", '{"a": 1}'.encode("utf-16")), r"config.json is damaged: .*utf-8"),
    "config a folder": (instead("config.json", Path.mkdir), r"config.json is a folder, not an ordinary file"),
    "config a pipe": (instead("config.json", os.mkfifo), r"config.json is a pipe or device"),
    "config a loop": (instead("config.json", loop), r"config.json is a link that leads nowhere"),
    "layers in words": (config(num_hidden_layers="two"), r'num_hidden_layers is "two"; a whole number'),
    "layers without end": (config(num_hidden_layers=10**7), r"num_hidden_layers is 10000000; a whole number from 1 to"),
    "no heads": (config(num_attention_heads=0), r"num_attention_heads is 0; a whole number"),
    "width below zero": (config(hidden_size=-4), r"hidden_size is -4; a whole number"),
    "vocabulary without end": (config(vocab_size=10**13), r"vocab_size is 10000000000000; a whole number"),
    "end token an object": (config(eos_token_id={"a": 1}), r"cannot be loaded: .*eos_token_id.*\w+"),
    "rope unknown": (config(rope_parameters={"rope_type": "spiral"}), r"cannot be loaded: .*spiral"),
    "code of its own": (
        config(model_type="mine", auto_map={"AutoConfig": "x.Y", "AutoModelForCausalLM": "x.Z"}),
        r"for authors you trust, set model.trust_remote_code",
    ),
    "index nested": (written("model.safetensors.index.json", DEEP), r"index.json is nested too deeply"),
    "index of numbers": (written("model.safetensors.index.json", "[1]"), r"index.json is damaged: it has no weight_map"),
    "header nested": (written(WEIGHTS, header('{"a":' * 20_000 + "1" + "}" * 20_000)), r"its header cannot be read"),
    "header a list": (written(WEIGHTS, header("[1,2]")), r"its header cannot be read"),
    "header of words": (
        written(WEIGHTS, header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,"x"]}}')), r"its header cannot be read",
    ),
    "weights a pipe": (instead(WEIGHTS, os.mkfifo), r"model.safetensors is a pipe or device"),
    "weights a loop": (instead(WEIGHTS, loop), r"model.safetensors is a link that leads nowhere"),
    "weights a folder": (instead(WEIGHTS, Path.mkdir), r"model.safetensors is a folder"),
    "shapes that differ": (config(intermediate_size=128), r"cannot be loaded: .*(size|shape)"),
    "tokenizer nested": (written("tokenizer_config.json", DEEP), r"tokenizer_config.json is nested too deeply"),
    "tokenizer cut": (written("tokenizer.json", '{"version":'), r"the tokenizer in .* cannot be loaded: .*\w+"),
    "tokenizer a pipe": (instead("tokenizer.json", os.mkfifo), r"tokenizer.json is a pipe or device"),
    "generation nested": (written("generation_config.json", DEEP), r"generation_config.json is nested too deeply"),
    "tokenizer that explodes": (splitting, r"the tokenizer in .* cannot split repeated characters: .*retry-limit"),
    "template that loops": (written("chat_template.jinja", BIG_LOOP), r"chat template takes more than 1 s .* it loops"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_broken_folder_costs_a_sentence(tiny_llama: Path, tmp_path: Path, backwards: Path, name: str) -> None:
    change, words = CASES[name]
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "broken"))
    change(folder)
    settings = Settings(
        fit="off",
        model={"name": str(folder), "precision": "fp32", "device": "cpu"},
        data={"train": str(backwards), "eval_share": 0.0},
        train={"max_steps": 1},
        eval={"samples": 0},
        run={"folder": str(tmp_path / "runs"), "name": "one"},
    )
    began = time.perf_counter()
    with pytest.raises(ModelError, match=words) as caught:
        train(settings)
    assert time.perf_counter() - began < 2.0
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800 and "weights_only" not in str(caught.value)
    assert not (tmp_path / "runs" / "one").exists()


def test_a_librarys_advice_to_read_pickles_unsafely_is_not_passed_on() -> None:
    error = ValueError("It failed.\nSet `weights_only=False` to load it anyway.\nThe file is cut.")
    assert library_words(error) == "It failed. The file is cut."
    assert library_words(ValueError("x" * 900)).endswith("x …") and library_words(ValueError()) == "ValueError"


def test_sizes_by_layer_and_models_without_experts_are_no_fault(tmp_path: Path) -> None:
    sizes = {"intermediate_size": [64, 128], "num_local_experts": 0, "num_key_value_heads": [2, None]}
    (tmp_path / "config.json").write_text(json.dumps({**sizes, "text_config": {"num_hidden_layers": 2}}))
    check_files(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"num_hidden_layers": 10**7}}))
    with pytest.raises(ModelError, match="num_hidden_layers is 10000000"):
        check_files(tmp_path)
