"""Each name a user may give, and each wrong one with its own remedy."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BertConfig, BertForMaskedLM, Blip2Config, T5Config

from fitune.errors import ModelError
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.load_config import load_config
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer


def load(name: str | Path, dtype: torch.dtype = torch.float32) -> LoadedBase:
    source = resolve(str(name))
    tokenizer = load_tokenizer(source)
    return load_base(source, tokenizer, resolve_template(tokenizer), detect("cpu"), Precision(dtype, "test"))


def copy_of(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def test_folder(tiny_llama: Path):
    base = load(tiny_llama)
    ids_BS = torch.arange(5, 25).reshape(2, 10)
    reference = AutoModelForCausalLM.from_pretrained(tiny_llama)(ids_BS).logits
    torch.testing.assert_close(base.model(ids_BS).logits, reference, atol=0, rtol=0)
    assert (base.source.kind, base.template.origin, base.new_token_ids) == ("folder", "model", ())
    assert base.model.generation_config.eos_token_id == [base.tokenizer.eos_token_id]


def test_gguf_gives_the_same_model_tokenizer_and_template(tiny_llama: Path, tiny_gguf: Path):
    """Reference: the folder that the GGUF file was written from."""
    base, reference = load(tiny_gguf), load(tiny_llama)
    assert base.source.kind == "gguf"
    ids_BS = torch.arange(5, 25).reshape(2, 10)
    torch.testing.assert_close(base.model(ids_BS).logits, reference.model(ids_BS).logits, atol=1e-6, rtol=0)
    text = "<|im_start|>user\nThe pig eats a banana, igpay!<|im_end|>\n"
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == reference.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert base.template.text == reference.template.text
    assert base.stop_ids == reference.stop_ids


def test_a_gguf_model_can_be_saved_and_adapted(tiny_gguf: Path, tmp_path: Path):
    from fitune.adapters.inject import attach, lora_config

    base = load(tiny_gguf)
    base.model.save_pretrained(tmp_path / "dense")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "dense")
    ids_BS = torch.arange(5, 25).reshape(2, 10)
    torch.testing.assert_close(again(ids_BS).logits, base.model(ids_BS).logits, atol=0, rtol=0)
    model = attach(base.model, lora_config(base.model, rank=2))
    model(ids_BS).logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135m-instrct", r'there is no model.*did you mean "smollm2-135m-instruct"'),
        ("SmolLM2-135M-Instruct", 'did you mean "smollm2-135m-instruct"'),
        ("./nowhere/model", 'there is no folder "./nowhere/model"'),
        ("a/b/c", 'there is no folder "a/b/c"'),
        ("", "model.name is empty"),
        ("missing.gguf", "there is no GGUF file at missing.gguf"),
    ],
)
def test_a_name_of_nothing(name: str, message: str):
    with pytest.raises(ModelError, match=message):
        resolve(name)


def test_near_names_of_local_files_are_offered(tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(tiny_llama, tmp_path / "my-model")
    with pytest.raises(ModelError, match='did you mean "my-model"'):
        resolve(str(tmp_path / "my-modle"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match='did you mean "my-model"'):
        load_config(resolve("my-modle"))


def test_hub_unreachable_says_how_to_pass_a_folder():
    """Tests are offline (HF_HUB_OFFLINE)."""
    source = resolve("some-org/some-model", "v2")
    assert (source.kind, source.revision) == ("hub", "v2")
    with pytest.raises(ModelError, match=r'hub model "some-org/some-model" at revision v2.*name the folder'):
        load_config(source)
    with pytest.raises(ModelError, match=r"name the folder in model\.name"):
        load_tokenizer(source)


def test_folder_that_is_not_a_model(tiny_llama: Path, tmp_path: Path):
    with pytest.raises(ModelError, match=r"it has no config\.json"):
        resolve(str(tmp_path))
    folder = copy_of(tiny_llama, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no weights \(\*\.safetensors\)"):
        resolve(str(folder))
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match=r"pickled weights \(pytorch_model\.bin\), which can run code"):
        resolve(str(folder))
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="holds an adapter, not a model"):
        resolve(str(folder))
    with pytest.raises(ModelError, match=r"is a file; name the model's folder"):
        resolve(str(folder / "config.json"))


def test_damaged_folder(tiny_llama: Path, tmp_path: Path):
    folder = copy_of(tiny_llama, tmp_path)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors is damaged: it has .* and should have"):
        load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json is damaged: Expecting property name"):
        load_config(resolve(str(folder)))


def test_missing_weights_are_not_made_up(tiny_llama: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = copy_of(tiny_llama, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the model's weights.*layers\.1\.mlp\.up_proj"):
        load(folder)


@pytest.mark.parametrize(
    ("keep", "message"), [(0, "begins with b''"), (3, "begins with"), (40, "truncated"), (20_000, "truncated")]
)
def test_gguf_cut_short(tiny_gguf: Path, tmp_path: Path, keep: int, message: str):
    path = tmp_path / "cut.gguf"
    path.write_bytes(tiny_gguf.read_bytes()[:keep])
    with pytest.raises(ModelError, match=message):
        resolve(str(path))


def test_gguf_cut_in_its_last_tensor(tiny_gguf: Path, tmp_path: Path):
    whole = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:-1000])
    with pytest.raises(ModelError, match="truncated"):
        resolve(str(path))


def test_gguf_of_wrong_magic(tiny_gguf: Path, tmp_path: Path):
    path = tmp_path / "wrong.gguf"
    path.write_bytes(b"PK\x03\x04" + tiny_gguf.read_bytes()[4:])
    with pytest.raises(ModelError, match=r"is not a GGUF file: it begins with b'PK"):
        resolve(str(path))


def test_not_a_causal_model(tiny_llama: Path, tmp_path: Path):
    folder = copy_of(tiny_llama, tmp_path)
    T5Config(d_model=16, num_layers=1).save_pretrained(folder)
    with pytest.raises(ModelError, match="is a t5 model, not a causal language model"):
        load_config(resolve(str(folder)))
    bert = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16, vocab_size=32)
    BertForMaskedLM(bert).save_pretrained(folder)
    with pytest.raises(ModelError, match="is a BertForMaskedLM, not a causal language model"):
        load_config(resolve(str(folder)))


def test_a_model_that_reads_no_text_without_a_picture(tiny_llama: Path, tmp_path: Path):
    folder = Path(shutil.copytree(tiny_llama, tmp_path / "blip"))
    Blip2Config(architectures=["Blip2ForConditionalGeneration"]).save_pretrained(folder)
    with pytest.raises(ModelError, match="is a blip-2 model, not a causal language model"):
        load_config(resolve(str(folder)))


def test_foreign_code_is_refused_unless_asked(tiny_llama: Path, tmp_path: Path):
    """The folder's own Python file would leave a mark when it ran."""
    folder = copy_of(tiny_llama, tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own"
    config["auto_map"] = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="configuration"):
        load_config(resolve(str(folder)))
    assert not (tmp_path / "ran").exists()


def test_foreign_code_is_said_aloud(tiny_llama: Path):
    source = resolve(str(tiny_llama))
    tokenizer = load_tokenizer(source)
    precision = Precision(torch.float32, "test")
    base = load_base(source, tokenizer, resolve_template(tokenizer), detect("cpu"), precision, trust_remote_code=True)
    assert any("Python code that came with" in note for note in base.notes)
