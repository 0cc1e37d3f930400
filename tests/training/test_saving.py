"""The end of a run cannot lose it: saving is rehearsed before step one, and what was saved opens again."""

from __future__ import annotations

import json
import shutil

import pytest
from transformers import GenerationConfig

import fitune
from fitune.errors import RunError
from fitune.evaluation.inference_model import open_target
from fitune.runs.run_folder import RunFolder, read_rows
from fitune.trainers.base import FituneTrainer


def with_generation(folder, tmp_path, **changed):
    """A copy of a model's folder with another generation_config.json."""
    copy = shutil.copytree(folder, tmp_path / "odd")
    path = copy / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))
    return copy


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_sampling_options_without_do_sample_are_trained_and_saved(settings_of, tiny_llama, tmp_path, capfd, tuning):
    """E01: as Llama 2 chat was published."""
    base = with_generation(tiny_llama, tmp_path, temperature=0.9, top_p=0.6)
    rate = {"train__tuning": tuning, "train__max_steps": 2, "eval__samples": 0}
    result = fitune.train(settings_of(model__name=str(base), **rate))
    kept = GenerationConfig.from_pretrained(result.saved)
    assert (kept.do_sample, kept.temperature, kept.top_p) == (True, 0.9, 0.6)
    assert "has sampling options without do_sample: do_sample is set to true" in capfd.readouterr().err
    assert open_target(str(result.folder), device="cpu", precision="fp32").model is not None


def test_a_generation_config_beyond_repair_costs_itself_alone(settings_of, tiny_llama, tmp_path, capfd):
    base = with_generation(tiny_llama, tmp_path, output_scores=True, return_dict_in_generate=False)
    result = fitune.train(settings_of(model__name=str(base), train__max_steps=2, eval__samples=0))
    assert GenerationConfig.from_pretrained(result.saved).output_scores in (None, False)
    assert "is left out but for its special tokens, since it cannot be saved" in capfd.readouterr().err


def test_what_cannot_be_saved_is_found_before_step_one(settings_of, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("this tokenizer\ncannot be written")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", refuse)
    monkeypatch.setattr(FituneTrainer, "training_step", lambda *args, **kwargs: pytest.fail("a step was taken"))
    with pytest.raises(RunError, match="so it does not begin: this tokenizer cannot be written"):
        fitune.train(settings_of())


def test_an_adapter_over_a_layer_that_the_bare_base_lacks_is_found_before_step_one(settings_of, monkeypatch):
    """X01: what PEFT names in the file must be a layer of the base without PEFT."""
    from fitune.methods import save_result

    twin_of = save_result._bare_twin

    def other(base):
        twin = twin_of(base)
        del twin.gpt_neox.layers[1].mlp.dense_h_to_4h
        return twin

    monkeypatch.setattr(save_result, "_bare_twin", other)
    monkeypatch.setattr(FituneTrainer, "training_step", lambda *args, **kwargs: pytest.fail("a step was taken"))
    with pytest.raises(RunError, match=r"would not open again.*no layer gpt_neox.layers.1.mlp.dense_h_to_4h"):
        fitune.train(settings_of())


def test_a_result_that_does_not_open_is_not_called_saved(settings_of, tmp_path, monkeypatch, capfd):
    from fitune.training import finalize

    def broken(model, folder):
        (folder / "adapter_model.safetensors").write_bytes(b"cut")
        return check(model, folder)

    check = finalize.open_again
    monkeypatch.setattr(finalize, "open_again", broken)
    with pytest.raises(RunError, match=r"does not open again: .*truncated"):
        fitune.train(settings_of())
    run = RunFolder(tmp_path / "runs" / "one")
    assert "saved to" not in capfd.readouterr().err and len(read_rows(run.metrics)) == 6
    assert not [path for path in run.path.iterdir() if path.name.startswith(".")]
