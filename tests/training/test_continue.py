"""Training a saved adapter further (`lora.continue_from`): it begins where the first run ended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import fitune
from fitune.adapters.adapter_folder import load_adapter, read_facts
from fitune.adapters.inject import attach, lora_config
from fitune.config.settings_loader import load_settings
from fitune.data.read.sources import DataOptions
from fitune.errors import ModelError, RunError, SettingsError
from fitune.evaluation.combine_saved import combine_on_disk
from fitune.evaluation.evaluate import evaluate
from fitune.evaluation.inference_model import open_target
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer
from fitune.training.plan_scenario import scenario_of


def adapter_bytes(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


@pytest.fixture
def first(settings_of: Any) -> Path:
    """A finished run of two steps, DoRA with norms and biases trained: everything that an adapter can hold."""
    lora = {"rank": 4, "alpha": 8, "train_norms": True, "bias": "lora_only", "dora": True}
    return fitune.train(settings_of(lora=lora, train__max_steps=2)).folder


def test_it_begins_where_the_first_run_ended(first: Path, settings_of: Any, tmp_path: Path):
    ended = json.loads((first / "manifest.json").read_text())["results"]["after"]["loss"]
    second = fitune.train(settings_of(lora={"continue_from": "one"}, run__name="two", train__max_steps=2))
    assert second.before is not None and second.after is not None
    manifest = json.loads((second.folder / "manifest.json").read_text())
    assert second.before["loss"] == ended
    assert second.after["loss"] != ended
    assert manifest["model"]["continues"]["adapter"] == str((first / "adapter").resolve())
    before, after = (read_facts(folder / "adapter") for folder in (first, second.folder))
    assert before == after and adapter_bytes(first) != adapter_bytes(second.folder)
    configs = [json.loads((f / "adapter" / "adapter_config.json").read_text()) for f in (first, second.folder)]
    assert configs[0] == configs[1]


def test_a_continued_run_resumes_bit_for_bit(first: Path, settings_of: Any):
    lora = {"continue_from": str(first)}
    whole = fitune.train(settings_of(lora=lora, run__name="whole", train__max_steps=4, run__checkpoint_steps=2))
    fitune.train(settings_of(lora=lora, run__name="cut", train__max_steps=4, run__checkpoint_steps=2))
    cut = first.parent / "cut"
    for name in ("checkpoint-4", "../adapter"):
        for path in sorted((cut / "checkpoints" / name).glob("*")):
            path.unlink()
        (cut / "checkpoints" / name).rmdir()
    manifest = json.loads((cut / "manifest.json").read_text())
    (cut / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    again = fitune.train(resume=cut)
    assert again.status == "finished" and adapter_bytes(cut) == adapter_bytes(whole.folder)

    (cut / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    weights = first / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    with pytest.raises(RunError, match="the adapter that it continues changed"):
        fitune.train(resume=cut)


@pytest.mark.parametrize("option", [{}, {"dora": True, "train_norms": True}, {"bias": "all"}, {"init": "pissa"}])
def test_the_same_is_trained_as_in_a_new_adapter(settings_of: Any, option: dict[str, Any]):
    run = fitune.train(settings_of(lora={"rank": 4, **option}, train__max_steps=1)).folder
    kinds = []
    for load in (
        lambda base: load_adapter(base.model, run / "adapter", trainable=True),
        lambda base: attach(base.model, lora_config(base.model, rank=4, new_token_ids=base.new_token_ids, **option)),
    ):
        model = load(open_base(settings_of().model.name))
        kinds.append({name: (w.dtype, w.requires_grad) for name, w in model.named_parameters()})
    assert kinds[0] == kinds[1]


def open_base(name: str) -> LoadedBase:
    import torch

    source = resolve(name)
    tokenizer = load_tokenizer(source)
    return load_base(source, tokenizer, resolve_template(tokenizer), detect("cpu"), Precision(torch.bfloat16, "test"))


def test_the_plan_knows_its_options(first: Path, settings_of: Any):
    settings = settings_of(lora={"continue_from": "one"})
    scenario = scenario_of(settings, longest_tokens=20, label_share=0.5, pack_tokens=None)
    assert (scenario.rank, scenario.dora, scenario.bias) == (4, True, "lora_only")
    assert set(scenario.modules_to_save) >= {"input_layernorm", "final_layer_norm"}


def test_a_new_adapter_over_a_merged_one(first: Path, settings_of: Any):
    """It begins at the first run's loss, is opened with that one merged in again, and can be continued and stacked."""
    ended = json.loads((first / "manifest.json").read_text())["results"]["after"]["loss"]
    second = fitune.train(settings_of(model__merge=["one"], lora={"rank": 2}, run__name="two", train__max_steps=2))
    assert second.before is not None and second.after is not None
    assert second.before["loss"] == pytest.approx(ended, abs=1e-4) and second.after["loss"] < ended - 1e-3
    moved = first.rename(first.with_name("elsewhere"))  # what it stands on is in its own folder
    config = json.loads((second.folder / "adapter" / "adapter_config.json").read_text())
    assert "with 1 adapters merged in" in config["base_model_name_or_path"] and config["r"] == 2
    target = open_target(str(second.folder), device="cpu", precision="fp32")
    found = evaluate_loss(target, settings_of().data.train)
    bare = evaluate_loss(
        open_target(settings_of().model.name, device="cpu", precision="fp32"), settings_of().data.train
    )
    assert found < bare - 0.05
    third = fitune.train(settings_of(lora={"continue_from": "two"}, run__name="three", train__max_steps=1))
    assert third.before is not None and third.after is not None and third.before["loss"] == second.after["loss"]
    merges = [str(moved), "three"]  # "three" brings "one" along: it is merged once
    fourth = fitune.train(settings_of(model__merge=merges, lora={"rank": 2}, run__name="four", train__max_steps=1))
    assert fourth.before is not None and fourth.before["loss"] == pytest.approx(third.after["loss"], abs=1e-4)
    assert not (fourth.folder / "adapter" / "merged" / "2").exists()
    with pytest.raises(ModelError, match="different adapters merged in"):
        combine_on_disk([("two", 1.0), ("elsewhere", 1.0)], "x", runs_folder=second.folder.parent, device="cpu")
    assert (fourth.folder / "adapter" / "merged" / "1" / "adapter_config.json").exists()


def evaluate_loss(target: Any, data: str) -> float:
    return evaluate(target, data, DataOptions(), max_new_tokens=1).metrics["loss"]


def test_faults(first: Path, settings_of: Any, tmp_path: Path, tiny_model: Any):
    with pytest.raises(SettingsError, match=r"lora\.rank is set, and lora\.continue_from continues an adapter"):
        load_settings(None, {"lora.continue_from": "one", "lora.rank": "8"})
    with pytest.raises(SettingsError, match=r"train\.tuning is full, which has no adapters"):
        load_settings(None, {"lora.continue_from": "one", "train.tuning": "full"})
    with pytest.raises(SettingsError, match=r"model\.merge is set, and model\.quantization is nf4"):
        load_settings(None, {"model.merge": "one", "model.quantization": "nf4"})
    with pytest.raises(ModelError, match=r'lora.continue_from is onw: there is no run or adapter "onw" \(did you mean'):
        fitune.train(settings_of(lora={"continue_from": "onw"}, run__name="two"))
    other = str(tiny_model("llama"))
    with pytest.raises(ModelError, match=r"was trained with another chat template|belongs to another base"):
        fitune.train(settings_of(lora={"continue_from": "one"}, run__name="two", model__name=other))
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}")
    with pytest.raises(ModelError, match=r"another chat template; set model.chat_template to .*chat_template.jinja"):
        fitune.train(settings_of(lora={"continue_from": "one"}, run__name="two", model__chat_template=str(template)))
