"""Whole runs on tiny models: what is refused before the model is loaded, what is left in the folder, what it learnt."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import fitune
from fitune.errors import DataError, MissingExtra, RunError, SettingsError, TrainingHalted
from fitune.evaluation.generation import answer
from fitune.evaluation.inference_model import open_target
from fitune.runs import manifest as manifests
from fitune.runs.run_folder import RunFolder, read_rows
from fitune.trainers.base import FituneTrainer
from fitune.training import components


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path / "runs" / "one")


def test_a_base_model_without_template_learns_chatml_and_stops(tmp_path, settings_of, tiny_model):
    """Instruction-tuned to overfit, reloaded from the run's folder, it answers in the same template and ends.

    The frozen random head must be able to tell 400 tokens apart: at the usual 0.02 its logits stay below 1.
    """
    end = "<|endoftext|>"
    model = tiny_model(
        "gpt_neox", specials={"bos_token": end, "eos_token": end, "unk_token": end}, template=None, spare_rows=20,
        tie_word_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    pairs = {"say pig": "igpay", "eat what?": "banana", "who?": "the user"}
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": key, "completion": value}) + "\n" for key, value in pairs.items()))
    settings = settings_of(
        model__name=str(model), data__train=str(data), data__eval_share=0.0, train__epochs=150,
        train__batch_size=3, lora__rank=32, run__checkpoint_steps=150,
    )  # fmt: skip
    result = fitune.train(settings)
    target = open_target(str(result.folder), precision="fp32", device="cpu")
    end = target.renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")
    conversations = [[{"role": "user", "content": question}] for question in pairs]
    assert answer(target.model, target.renderer, conversations, max_new_tokens=30) == list(pairs.values())
    prompt = torch.tensor([target.renderer.prompt_ids(conversations[0])])
    spoken = target.model.generate(
        input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=30, do_sample=False,
        pad_token_id=target.renderer.tokenizer.pad_token_id, eos_token_id=list(target.renderer.stop_ids),
    )[0, prompt.shape[1] :].tolist()  # fmt: skip
    assert spoken[-1] == end and len(spoken) < 30
    saved = AutoTokenizer.from_pretrained(result.saved)
    assert saved.chat_template == target.renderer.template_text and "<|im_start|>" in saved.chat_template


def test_the_folder_holds_the_whole_story(settings_of, run):
    result = fitune.train(settings_of())
    manifest = manifests.read(run.manifest)
    assert result.folder == run.path and result.saved == run.adapter and result.exit_code == 0
    assert manifest["status"] == "finished" and manifest["started"] <= manifest["ended"]
    assert manifest["parameters"]["trained"] < manifest["parameters"]["total"]
    assert manifest["data"]["train_rows"] == 8 and len(manifest["data"]["hashes"]) == 1
    assert manifest["training"]["steps"] == 4 and manifest["hardware"]["device"] == "cpu"
    assert manifest["results"]["before"] == result.before and manifest["results"]["after"] == result.after
    assert {"loss", "exact_match", "word_accuracy", "chrf"} == result.before.keys() == result.after.keys()
    kinds = [(row["step"], row["kind"]) for row in read_rows(run.metrics)]
    assert kinds == [(0, "eval"), *[(step, "train") for step in range(1, 5)], (4, "eval")]
    row = read_rows(run.metrics)[1]
    assert row["tokens"] > 0 and row["tokens_per_second"] > 0 and row["seconds"] > 0 and row["memory_bytes"] > 0
    samples = read_rows(run.samples)
    assert [sample["moment"] for sample in samples] == ["before"] * 2 + ["during"] * 2 + ["after"] * 2
    assert samples[0]["asked"].startswith("say ") and samples[0]["wanted"]
    restored = fitune.Settings(**fitune.show_run(run.path)["settings"])
    assert restored == settings_of()


def test_the_adapter_changes_the_model(settings_of, run):
    """unsloth #2142: saved, loaded, and nothing was different."""
    fitune.train(settings_of(train__epochs=3))
    target = open_target(str(run.path), precision="fp32", device="cpu")
    ids = torch.tensor([target.renderer.prompt_ids([{"role": "user", "content": "say cat"}])])
    with torch.no_grad():
        adapted = target.model(input_ids=ids).logits
        with target.without_adapter():
            bare = target.model(input_ids=ids).logits
    assert (adapted - bare).abs().max() > 1e-2


def test_full_fine_tuning_saves_a_model_that_opens_alone(settings_of, run, neox_folder):
    result = fitune.train(settings_of(train__tuning="full", train__learning_rate=1e-3, model__precision="bf16"))
    assert result.saved == run.model and not run.adapter.exists()
    model = AutoModelForCausalLM.from_pretrained(run.model, dtype=torch.float32)
    assert model.config.use_cache and AutoTokenizer.from_pretrained(run.model).chat_template
    before = load_file(neox_folder / "model.safetensors")["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"]
    assert not torch.equal(model.state_dict()["gpt_neox.layers.0.mlp.dense_h_to_4h.weight"], before)
    weights = load_file(run.model / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}  # the masters, nothing rounded away
    parameters = manifests.read(run.manifest)["parameters"]
    assert parameters["trained"] == parameters["total"]
    target = open_target(str(run.path), device="cpu", precision="fp32")
    assert target.adapter is None
    assert len(answer(target.model, target.renderer, [[{"role": "user", "content": "say cat"}]], 3)) == 1


def test_lm_trains_on_plain_text_without_questions(tmp_path, settings_of, run):
    data = tmp_path / "lines.txt"
    data.write_text("".join(f"The birch canoe slid on {number} planks.\n" for number in range(12)))
    result = fitune.train(settings_of(method="lm", data__train=str(data)))
    assert result.after.keys() == {"loss"} and result.after["loss"] < result.before["loss"]
    assert read_rows(run.samples) == []


def test_bad_data_are_refused_before_a_weight_is_loaded_and_leave_no_folder(tmp_path, settings_of, run, monkeypatch):
    monkeypatch.setattr(components, "load_base", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    data = tmp_path / "bad.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"\n')
    with pytest.raises(DataError):
        fitune.train(settings_of(data__train=str(data)))
    assert not run.path.exists()


def test_faults_of_the_settings_come_before_a_weight_is_loaded(settings_of, monkeypatch):
    monkeypatch.setattr(components, "load_base", lambda *args, **kwargs: pytest.fail("the model was loaded"))
    with pytest.raises(SettingsError, match="does not divide"):
        fitune.train(settings_of(train__micro_batch_size=3, train__batch_size=4))
    with pytest.raises(SettingsError, match="no rows are held out"):
        fitune.train(settings_of(eval__best_metric="chrf", data__eval_share=0.0))
    with pytest.raises(SettingsError, match="needs answers"):
        fitune.train(settings_of(eval__best_metric="chrf", eval__samples=0))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="wandb"):
        fitune.train(settings_of(run__report_to=["wandb"]))


def test_no_space_is_found_out_before_the_first_step(settings_of, run, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setattr(FituneTrainer, "training_step", lambda *args, **kwargs: pytest.fail("a step was taken"))
    with pytest.raises(RunError, match="no space for the run"):
        fitune.train(settings_of())
    assert not run.path.exists()  # nothing was done yet: the name is free again


def test_a_failure_after_the_first_step_keeps_the_run(settings_of, run, monkeypatch):
    def break_down(*args):
        raise RuntimeError("broken down")

    monkeypatch.setattr("fitune.training.run.finish", break_down)
    with pytest.raises(RuntimeError, match="broken down"):
        fitune.train(settings_of())
    manifest = manifests.read(run.manifest)
    assert manifest["status"] == "failed" and "broken down" in manifest["error"]
    assert not (run.path / "run.lock").exists() and len(read_rows(run.metrics)) == 6


def test_what_is_derived_is_said_with_where_it_came_from(settings_of, capfd):
    fitune.train(settings_of(train__learning_rate=None))
    said = capfd.readouterr().err
    assert "learning rate 0.0002: the default for sft with lora" in said
    assert "4 steps: 8 rows, 2 per step, 1 epochs" in said
    assert "in fp32: asked for" in said and "from the model's context length" in said
    assert "it/s" not in said and "%|" not in said  # no tqdm


def test_the_best_weights_are_the_ones_saved(settings_of, run):
    """A rate that makes the held-out loss worse from the first evaluation on."""
    settings = settings_of(
        train__epochs=4, train__learning_rate=0.3, train__lr_scheduler="constant", eval__every_steps=2, eval__samples=0
    )
    result = fitune.train(settings)
    losses = {row["step"]: row["loss"] for row in read_rows(run.metrics) if row["kind"] == "eval" and row["step"]}
    best = min(losses, key=losses.__getitem__)
    assert result.best_step == best < 16 and result.after["loss"] == losses[best]
    checkpoint = load_file(run.checkpoints / f"checkpoint-{best}" / "trained.safetensors")
    adapter = load_file(run.adapter / "adapter_model.safetensors")
    name = next(name for name in adapter if "lora_B" in name)
    assert torch.equal(adapter[name], checkpoint[name.replace("lora_B.", "lora_B.default.")])


def test_a_loss_that_is_not_finite_is_in_the_manifest(settings_of, run):
    with pytest.raises(TrainingHalted, match=r"halted at step \d+.*rows"):
        fitune.train(settings_of(train__learning_rate=1e30, train__max_grad_norm=None, train__epochs=3))
    manifest = manifests.read(run.manifest)
    assert manifest["status"] == "halted" and "halted at step" in manifest["error"]


def test_two_runs_of_the_same_settings_are_equal_bit_for_bit(settings_of, tmp_path):
    losses = []
    for name in ("one", "two"):
        fitune.train(settings_of(run__name=name, lora__dropout=0.2))
        losses.append([row["loss"] for row in read_rows(tmp_path / "runs" / name / "metrics.jsonl")])
    assert losses[0] == losses[1]


@pytest.mark.parametrize("optimizer", ["adafactor", "sgd", "adamw_8bit"])
def test_every_optimizer_steps(settings_of, run, optimizer):
    if optimizer == "adamw_8bit" and not torch.cuda.is_available():
        pytest.skip("8-bit states need a GPU")
    result = fitune.train(settings_of(train__optimizer=optimizer, eval__samples=0))
    assert result.status == "finished"


def test_gradient_checkpointing_changes_no_loss(settings_of, tmp_path):
    losses = []
    for name, on in (("one", False), ("two", True)):
        fitune.train(settings_of(run__name=name, train__gradient_checkpointing=on, eval__samples=0))
        losses.append([row["loss"] for row in read_rows(tmp_path / "runs" / name / "metrics.jsonl")])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
