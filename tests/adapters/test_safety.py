"""Nothing that is opened may run code, and no adapter lies over a base that it was not trained on."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from fitune.adapters.adapter_folder import base_facts, load_adapter, save_adapter
from fitune.adapters.inject import attach, lora_config
from fitune.adapters.locate import read_facts
from fitune.errors import ModelError
from fitune.evaluation.inference_model import open_target
from fitune.exporting.export import export
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import load_base
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer
from fitune.models.weight_files.safetensors_check import check_safetensors

IDS = list(range(5, 25))


class Mark:
    """Unpickling this writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


def pickles(mark: Path) -> dict[str, bytes]:
    """A plain pickle and a torch.save archive, each of which writes `mark` when it is opened carelessly."""
    archive = mark.with_suffix(".archive")
    torch.save({"weight": torch.zeros(2), "evil": Mark(mark)}, archive)
    return {"pickle": pickle.dumps(Mark(mark)), "torch.save": archive.read_bytes()}


def open_base(folder: Path, allow_pickled: bool = False) -> Any:
    source = resolve(str(folder), allow_pickled=allow_pickled)
    tokenizer = load_tokenizer(source)
    return load_base(source, tokenizer, resolve_template(tokenizer), detect("cpu"), Precision(torch.float32, "test"))


@pytest.fixture
def base_folder(tiny_llama: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_llama, tmp_path / "base"))


@pytest.fixture
def adapter(base_folder: Path, tmp_path: Path) -> Path:
    base = open_base(base_folder)
    model = attach(base.model, lora_config(base.model, rank=2, init="debug"))
    save_adapter(model, base.tokenizer, base.template, tmp_path / "adapter", base_facts(base))
    return tmp_path / "adapter"


# ---- pickles and damage


def test_the_trap_works(tmp_path: Path):
    """The pickles of these tests do write a file when they are opened carelessly."""
    pickle.loads(pickles(tmp_path / "mark")["pickle"])
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_begins_like_a_pickle_is_none(length: int, tmp_path: Path) -> None:
    body = b'{"__metadata__":{"format":"pt"}}'
    path = tmp_path / "model.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + body.ljust(length))
    check_safetensors(path)


@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_a_pickle_in_disguise_is_not_opened(base_folder: Path, adapter: Path, tmp_path: Path, kind: str):
    mark = tmp_path / "mark"
    bytes_of = pickles(mark)[kind]
    base = open_base(base_folder)
    (adapter / "adapter_model.safetensors").write_bytes(bytes_of)
    with pytest.raises(ModelError, match="is a pickle with the extension of a safetensors file; it was not opened"):
        load_adapter(base.model, adapter)
    (base_folder / "model.safetensors").write_bytes(bytes_of)
    with pytest.raises(ModelError, match="is a pickle with the extension"):
        open_base(base_folder)
    with pytest.raises(ModelError, match="is a pickle with the extension"):
        open_base(base_folder, allow_pickled=True)
    assert not mark.exists()


def test_a_pickled_adapter_is_refused(base_folder: Path, adapter: Path, tmp_path: Path):
    mark = tmp_path / "mark"
    (adapter / "adapter_model.safetensors").unlink()
    (adapter / "adapter_model.bin").write_bytes(pickles(mark)["torch.save"])
    with pytest.raises(ModelError, match="pickled adapters are not loaded"):
        load_adapter(open_base(base_folder).model, adapter)
    assert not mark.exists()


def test_an_index_that_leads_to_a_pickle_is_refused(base_folder: Path, tmp_path: Path):
    mark = tmp_path / "mark"
    (base_folder / "evil.bin").write_bytes(pickles(mark)["torch.save"])
    for shard in ("evil.bin", "../evil.safetensors"):
        index = {"metadata": {}, "weight_map": {"model.norm.weight": shard}}
        (base_folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ModelError, match="only safetensors beside it are loaded"):
            open_base(base_folder)
    index["weight_map"] = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    (base_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"model-00002-of-00002\.safetensors is missing"):
        open_base(base_folder)
    assert not mark.exists()


def test_pickled_weights_are_loaded_only_when_asked_and_never_run(base_folder: Path, tmp_path: Path):
    tensors = load_file(base_folder / "model.safetensors")
    wanted = open_base(base_folder).model(torch.tensor([IDS])).logits
    (base_folder / "model.safetensors").unlink()
    torch.save(tensors, base_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pickled weights.*--allow-pickled.*model\.allow_pickled"):
        open_base(base_folder)
    base = open_base(base_folder, allow_pickled=True)
    assert torch.equal(base.model(torch.tensor([IDS])).logits, wanted)
    assert any("model.allow_pickled is on" in note for note in base.notes)
    done = export(str(base_folder), "merged", tmp_path / "converted", num_prompts=1, allow_pickled=True)
    assert (done.folder / "model.safetensors").exists()
    mark = tmp_path / "mark"
    torch.save({**tensors, "evil": Mark(mark)}, base_folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        open_base(base_folder, allow_pickled=True)
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0, 5, 60, -1, -1000])
def test_a_truncated_download_is_refused(base_folder: Path, adapter: Path, keep: int):
    base = open_base(base_folder)
    for path, opens in (
        (adapter / "adapter_model.safetensors", lambda: load_adapter(base.model, adapter)),
        (base_folder / "model.safetensors", lambda: open_base(base_folder)),
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[:keep])
        with pytest.raises(ModelError, match=r"Download it again|truncated"):
            opens()


def test_a_damaged_table_is_refused(adapter: Path):
    path = adapter / "adapter_model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[8] = ord("[")
    path.write_bytes(whole)
    with pytest.raises(ModelError, match="its header cannot be read"):
        check_safetensors(path)
    (adapter / "fitune.json").write_text("{")
    with pytest.raises(ModelError, match=r"fitune\.json is damaged"):
        read_facts(adapter)


# ---- another base


def test_another_base_is_refused(
    adapter: Path, tiny_model: Callable[..., Path], tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(ModelError, match="its embedding rows is 380, this model's is 384"):
        load_adapter(open_base(tiny_model("llama", spare_rows=4)).model, adapter)
    with pytest.raises(ModelError, match="its weights is"):  # a brother of equal shapes
        load_adapter(open_base(tiny_model("llama", seed=7, tie_word_embeddings=True)).model, adapter)
    with pytest.raises(ModelError, match="its model type is llama, this model's is gpt_neox"):
        load_adapter(open_base(tiny_model("gpt_neox")).model, adapter)
    facts = read_facts(adapter)
    facts["base"]["name"], facts["commit"] = "org/one", "1111"
    (adapter / "fitune.json").write_text(json.dumps(facts))
    model = open_base(tiny_llama).model
    model.config._name_or_path = "org/two"
    with pytest.raises(ModelError, match="it was trained on org/one, and this model is org/two"):
        load_adapter(model, adapter)
    model.config._name_or_path, model.config._commit_hash = "org/one", "2222"
    with pytest.raises(ModelError, match=r"at commit 1111, and this is commit 2222; set model\.revision"):
        load_adapter(model, adapter)


def test_a_plain_peft_adapter_of_other_shapes_is_refused(base_folder: Path, tmp_path: Path, tiny_model: Any):
    """Without fitune.json there are only the shapes to go by."""
    model = AutoModelForCausalLM.from_pretrained(base_folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["up_proj"])).save_pretrained(tmp_path / "plain")
    config = json.loads((tmp_path / "plain/adapter_config.json").read_text())
    (tmp_path / "plain/adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    load_adapter(open_base(base_folder).model, tmp_path / "plain")
    wider = tiny_model("llama", intermediate_size=96)
    with pytest.raises(ModelError, match=r"up_proj of this model has 32 inputs and 96 outputs"):
        load_adapter(open_base(wider).model, tmp_path / "plain")
    with pytest.raises(ModelError, match="this model has no layer"):
        load_adapter(open_base(tiny_model("gpt_neox")).model, tmp_path / "plain")


# ---- saved, ended, reloaded


@pytest.mark.slow  # a second process imports everything again
def test_another_process_reads_identical_logits(adapter: Path, base_folder: Path):
    base = open_base(base_folder)
    with torch.no_grad():
        wanted = load_adapter(base.model, adapter).eval()(torch.tensor([IDS])).logits
    code = (
        "import sys, torch; from safetensors.torch import save_file; torch.set_num_threads(1);"
        "from fitune.evaluation.inference_model import open_target;"
        f"m = open_target(sys.argv[1], precision='fp32', device='cpu').model; ids = torch.tensor([{IDS}]);"
        "g = torch.no_grad(); g.__enter__(); save_file({'logits': m(ids).logits}, sys.argv[2])"
    )
    out = adapter.parent / "logits.safetensors"
    done = subprocess.run([sys.executable, "-c", code, str(adapter), str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(load_file(out)["logits"], wanted)


def test_a_strangers_adapter_cannot_allow_itself_code_or_pickles(adapter: Path, base_folder: Path, tmp_path: Path):
    """Only the settings of a run of one's own do."""
    torch.save(load_file(base_folder / "model.safetensors"), base_folder / "pytorch_model.bin")
    (base_folder / "model.safetensors").unlink()
    facts = read_facts(adapter)
    facts["base"]["pickled"] = True
    (adapter / "fitune.json").write_text(json.dumps(facts))
    with pytest.raises(ModelError, match="pickled weights"):
        open_target(str(adapter))
    run = tmp_path / "run"
    shutil.copytree(adapter, run / "adapter")
    (run / "settings.yaml").write_text("model: {allow_pickled: true}\n")
    open_target(str(run / "adapter"))


def test_a_tensor_file_is_whole_after_saving(tmp_path: Path):
    save_file({"a": torch.zeros(3, 2), "b": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"format": "pt"})
    check_safetensors(tmp_path / "x.safetensors")
