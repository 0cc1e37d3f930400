"""The Python API: settings by keywords, and results that show themselves."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import fitune
from fitune.api.train_call import changed, dotted_changes


@pytest.fixture
def rows(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    lines = [
        {"prompt": f"the pig {word}", "completion": f"{word} ethay"} for word in ("eats", "a", "on", "string", "well")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in lines))
    return str(path)


def test_keywords_are_settings():
    dotted = dotted_changes(
        {"lora": {"rank": 8}, "train__max_steps": 3, "fit": "off"}, model="m", data=["a", "b"], name="n"
    )
    assert dotted == {
        "model.name": "m", "data.train": ["a", "b"], "lora.rank": 8, "train.max_steps": 3, "fit": "off", "run.name": "n",
    }  # fmt: skip
    settings = changed(fitune.load_settings(None, {"lora.rank": 4, "data.train": "x.jsonl"}), {"lora.alpha": 9})
    assert (settings.lora.rank, settings.lora.alpha, settings.data.train) == (4, 9, "x.jsonl")


def test_misspelt_keywords_come_with_suggestions():
    with pytest.raises(fitune.SettingsError, match="rank"):
        fitune.train(model="m", data="d.jsonl", lora={"rnak": 8})
    with pytest.raises(fitune.SettingsError, match="no training data is named"):
        fitune.train(model="m")


@pytest.mark.parametrize("name", ["train", "plan", "check_data", "evaluate", "generate", "chat", "load"])
def test_each_function_has_a_signature_and_explains_its_arguments(name: str):
    function = getattr(fitune, name)
    text = inspect.getdoc(function) or ""
    for parameter in inspect.signature(function).parameters.values():
        if name != "generate" or parameter.name not in ("max_new_tokens", "top_p"):
            assert f"{parameter.name}:" in text or "**" in str(parameter), parameter
    assert "Args:" in text


def test_check_data_shows_what_the_command_prints(rows: str, tiny_llama: Any):
    found = fitune.check_data(rows, model=tiny_llama)
    assert found.to_dict()["rows"] == 5 and "trained tokens" in repr(found) and "<pre>" in found._repr_html_()


def test_from_training_to_a_chat(rows: str, tiny_llama: Any, tmp_path: Path):
    run = fitune.train(
        model=tiny_llama, data=rows, name="mine", train={"max_steps": 2}, run__folder=str(tmp_path / "runs"),
        data__eval_share=0.2, eval={"max_new_tokens": 4}, data__system="be kind",
    )  # fmt: skip
    assert repr(run).startswith(f"RunResult({tmp_path}/runs/mine: finished, 2 steps; loss ")
    assert list(run.metrics().query("kind == 'train'")["step"]) == [1, 2]
    assert "<th>reference" in run._repr_html_()
    opened = fitune.load(run)
    one = fitune.generate(opened, "the pig eats", max_new_tokens=4)
    assert isinstance(one, str) and fitune.generate(opened, ["the pig eats"], max_new_tokens=4) == [one]
    talk = fitune.chat(opened)
    assert talk("the pig eats", max_new_tokens=4) == one
    assert [said["role"] for said in talk.messages] == ["system", "user", "assistant"]
    talk.clear()
    assert [said["content"] for said in talk.messages] == ["be kind"] and "be kind" in repr(talk)
    found = fitune.evaluate(opened, rows, rows=2, max_new_tokens=4)
    assert "loss" in repr(found) and len(found.frame()) == 2 and "<table>" in found._repr_html_()


def test_a_plan_prints_itself(tmp_path: Path):
    config = {
        "model_type": "llama", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = fitune.plan(tmp_path / "config.json", budget="1GiB", seq_len=8, train={"batch_size": 1})
    assert found.fits is True
    assert (
        "needs" in repr(found)
        and "<svg" in found._repr_html_()
        and found.peak_bytes == found.to_dict()["smi_peak_bytes"]
    )
