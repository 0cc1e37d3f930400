"""Runs over quantized bases with optimizers in 8 bits: a run that was cut and resumed is the whole one, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import fitune
from fitune.models.quantization.quantize import quantized_layers
from fitune.runs.checkpoints import complete_checkpoints


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "lora", "optimizer"),
    [
        ({"quantization": "nf4", "double_quant": True}, {"init": "loftq"}, "paged_adamw_8bit"),
        ({"quantization": "int8"}, {}, "adamw_8bit"),
    ],
)
def test_resumed_equals_whole(
    tiny_model: Callable[..., Path],
    settings_of: Any,
    capsys: pytest.CaptureFixture,
    model: dict,
    lora: dict,
    optimizer: str,
):
    """Rank 64 over 64 inputs: 4,096 values, from which on bitsandbytes keeps states in 8 bits."""
    folder = tiny_model("llama", hidden_size=64, intermediate_size=128, tie_word_embeddings=True)
    common: dict[str, Any] = {
        "model": {"name": str(folder), "precision": "bf16", "device": "cpu", **model}, "lora": {"rank": 64, **lora},
        "train__optimizer": optimizer, "train__max_steps": 4, "run__checkpoint_steps": 2, "eval__samples": 0,
    }  # fmt: skip
    whole = fitune.train(settings_of(**common, run__name="whole"))
    told = capsys.readouterr().err
    assert "linear layers are stored in" in told
    assert ("there is nothing to page" in told) == optimizer.startswith("paged")
    assert ("LoftQ: the quantized weights of 14 layers are off by" in told) == ("init" in lora)
    cut = fitune.train(settings_of(**common, run__name="cut")).folder
    shutil.rmtree(cut / "checkpoints" / "checkpoint-4")
    shutil.rmtree(cut / "adapter")
    manifest = json.loads((cut / "manifest.json").read_text())
    (cut / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    assert len(complete_checkpoints(cut / "checkpoints")) == 1
    fitune.train(resume=cut)
    tensors = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole.folder, cut)]
    assert all((tensors[0][name] == tensors[1][name]).all() for name in tensors[0].keys() | tensors[1].keys())
    from fitune.evaluation.inference_model import open_target

    assert len(quantized_layers(open_target(str(cut), device="cpu", precision="bf16").model)) == 14
