"""What loading a base says or refuses: tensors that no layer takes."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import fitune
from fitune.errors import ModelError
from fitune.evaluation.inference_model import open_target
from fitune.models.load_base import unused_weights
from fitune.training.run import train


@pytest.fixture
def half_a_model(tiny_llama, tmp_path):
    """2n: the config says one layer, the file has two."""
    folder = shutil.copytree(tiny_llama, tmp_path / "half")
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 1}))
    return folder


def test_tensors_without_a_layer_are_refused_unless_asked(half_a_model, settings_of, capfd):
    words = (
        r"9 tensors in the files of .*half belong to no layer .* model.layers.1.input_layernorm.weight, .* first; mend"
    )
    changed = {"model__name": str(half_a_model), "train__max_steps": 1, "eval__samples": 0}
    with pytest.raises(ModelError, match=words):
        train(settings_of(**changed))
    result = train(settings_of(model__allow_unused_weights=True, **changed))
    assert result.status == "finished" and "unused weights: 9 tensors" in capfd.readouterr().err
    open_target(str(result.folder), device="cpu")
    assert "warning: unused weights: 9 tensors" in capfd.readouterr().err


def test_tensors_known_to_be_of_no_use_to_a_text_model_are_no_fault():
    names = [
        "model.layers.0.self_attn.rotary_emb.inv_freq", "transformer.h.0.attn.masked_bias", "h.1.attn.bias",
        "lm_head.weight", "v_head.summary.weight", "model.mtp.layers.0.weight", "mtp.norm.weight",
        "model.vision_tower.blocks.0.weight", "multi_modal_projector.linear.weight", "audio_encoder.conv.weight",
        "position_ids",
    ]  # fmt: skip
    assert unused_weights(names) == []
    taken = ["model.layers.1.self_attn.q_proj.bias", "model.layers.9.mlp.up_proj.weight", "extra"]
    assert unused_weights(taken) == sorted(taken)


def test_a_base_with_weights_that_are_no_numbers_is_measured_by_nobody(tiny_llama, tmp_path, settings_of, backwards):
    """2m: NaN in the weights."""
    folder = shutil.copytree(tiny_llama, tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"logits that are no numbers \(NaN\), so nothing can be compared"):
        fitune.export(str(folder), "merged", tmp_path / "out", num_prompts=2)
    assert not (tmp_path / "out").exists()
    from fitune.data.read.sources import DataOptions
    from fitune.evaluation.evaluate import evaluate

    with pytest.raises(ModelError, match="the loss is nan"):
        evaluate(open_target(str(folder), device="cpu"), str(backwards), DataOptions(), max_new_tokens=2)
    with pytest.raises(fitune.FituneError, match="the loss on the held-out rows is nan in the evaluation at step 0"):
        train(settings_of(model__name=str(folder), eval__samples=0))
