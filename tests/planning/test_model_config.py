"""A model's name → its config: every place it may come from, every way it may be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fitune.errors import ModelError
from fitune.planning.model_config import config_of, read_config

LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 512, "transformers_version": "4.0", "_name_or_path": "x",
}  # fmt: skip


def written(folder: Path, values: Any, name: str = "config.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(values if isinstance(values, str) else json.dumps(values))
    return folder / name


def test_file_and_folder_are_the_same_question(tmp_path: Path) -> None:
    path = written(tmp_path, LLAMA)
    from_file, from_folder = config_of(str(path)), config_of(str(tmp_path))
    assert from_file.values == from_folder.values
    assert "transformers_version" not in from_file.values and "_name_or_path" not in from_file.values
    assert from_file.context_tokens == 512 and from_file.width == 64 and from_file.origin == str(path)


def test_the_built_in_model_needs_no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("nothing may be fetched"))
    config = config_of("smollm2-135m-instruct")
    assert config.values["model_type"] == "llama" and config.context_tokens == 8192 and config.origin == "built in"


@pytest.mark.slow
def test_the_built_in_config_is_the_converted_models(own_cache: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from fitune.models.builtin import fetch
    from fitune.planning.model_config import BESIDE

    if own_cache is None:
        monkeypatch.delenv("FITUNE_CACHE")
    else:
        monkeypatch.setenv("FITUNE_CACHE", own_cache)
    real = json.loads((fetch("smollm2-135m-instruct") / "config.json").read_text())
    assert config_of("smollm2-135m-instruct").values == {key: real[key] for key in real if key not in BESIDE}


def test_the_hubs_cache_is_read_without_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("the client was asked"))
    repo = tmp_path / "models--org--name"
    written(repo / "snapshots" / "abc123", LLAMA)
    written(repo / "refs", "abc123", "main")
    assert config_of("org/name").values["hidden_size"] == 64
    assert config_of("org/name", "abc123").origin == "hub, revision abc123 (in the cache)"


def test_an_unreachable_hub_says_what_to_do_instead(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"(?s)org/none.*fitune plan path/to/config.json"):
        config_of("org/none")  # the tests are offline


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("GatedRepoError", "gated"),
        ("RepositoryNotFoundError", "no model of that name"),
        ("RevisionNotFoundError", "no such revision"),
        ("EntryNotFoundError", "no config.json"),
        ("TimeoutError", "cannot be reached: slow"),
    ],
)
def test_each_fault_of_the_hub_has_its_words(kind: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise type(kind, (Exception,), {})("slow\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ModelError, match=said) as caught:
        config_of("org/none", "v2")
    assert "at revision v2" in str(caught.value) and "more" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read as JSON"),
        ([1], "is not a model config"),
        ({"hidden_size": 64}, 'no "model_type"'),
        ({**LLAMA, "num_hidden_layers": 0}, "num_hidden_layers is 0; use a whole number, 1 or more"),
        ({**LLAMA, "vocab_size": -5}, "vocab_size is -5"),
        ({**LLAMA, "hidden_size": 64.5}, "hidden_size is 64.5"),
        ({"model_type": "gemma3", "text_config": {"hidden_size": 0}}, "hidden_size is 0"),
    ],
)
def test_wrong_files(content: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=said.replace("(", "\\(")):
        read_config(written(tmp_path, content), "x")


def test_numbers_that_json_lacks_are_read_as_transformers_writes_them(tmp_path: Path) -> None:
    content = {**LLAMA, "time_step_limit": [0.0, {"__float__": "Infinity"}]}
    assert read_config(written(tmp_path, content), "x").values["time_step_limit"] == [0.0, float("inf")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "empty"),
        ("./nowhere", 'there is no folder "./nowhere"'),
        ("nowhere/config.json", 'there is no file "nowhere/config.json"'),
        ("smollm2-135m-instrukt", 'did you mean "smollm2-135m-instruct"'),
        ("none.gguf", "no GGUF file"),
    ],
)
def test_wrong_names(name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=said):
        config_of(name)


def test_a_neighbour_is_offered(tmp_path: Path) -> None:
    written(tmp_path, LLAMA, "confg.json")
    with pytest.raises(ModelError, match="did you mean"):
        config_of(str(tmp_path / "config.json"))


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no config\.json"):
        config_of(str(tmp_path))
    written(tmp_path, {"base_model_name_or_path": "org/base"}, "adapter_config.json")
    with pytest.raises(ModelError, match="plan its base: org/base"):
        config_of(str(tmp_path))


def test_a_quantized_checkpoint_is_planned_as_its_original(tmp_path: Path) -> None:
    path = written(tmp_path, {**LLAMA, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    config = config_of(str(path))
    assert "quantization_config" not in config.values and "gptq" in config.notes[0]


def test_context_length_of_a_nested_config(tmp_path: Path) -> None:
    path = written(tmp_path, {"model_type": "gemma3", "text_config": {"max_position_embeddings": 99, "hidden_size": 8}})
    assert (config_of(str(path)).context_tokens, config_of(str(path)).width) == (99, 8)
    path = written(tmp_path, {"model_type": "bloom"})
    assert (config_of(str(path)).context_tokens, config_of(str(path)).width) == (None, 4096)
