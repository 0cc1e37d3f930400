"""Whole runs on the device: each precision, the trial of the largest pass, running out of memory, resuming."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from small_card import card_with_room_for

import fitune
from fitune.runs import manifest as manifests
from fitune.runs.run_folder import read_rows

SHORT = {"train__max_steps": 3, "train__batch_size": 4, "run__log_steps": 1, "eval__samples": 0}


def losses_of(folder: Path) -> list[float]:
    return [row["loss"] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "train"]


@pytest.fixture
def on_device(settings_of: Any, device: str, tiny_llama: Path) -> Any:
    """Settings of a short run of the tiny Llama on the device."""

    def make(**changed: Any) -> Any:
        model = {"name": str(tiny_llama), "precision": "fp32", "device": device, **changed.pop("model", {})}
        return settings_of(**{**SHORT, "model": model, **changed})

    return make


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_step_in_each_precision(device: str, precision: str, on_device: Any):
    if device == "cpu" and precision == "fp16":
        pytest.skip("a CPU does not train in fp16")
    exact = losses_of(fitune.train(on_device(run__name="exact")).folder)
    found = losses_of(fitune.train(on_device(run__name=precision, model={"precision": precision})).folder)
    assert len(found) == 3 and all(math.isfinite(loss) for loss in found)
    assert found == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_the_largest_pass_is_tried_before_step_one(device: str, packing: str, on_device: Any, capsys: Any):
    fitune.train(on_device(data__packing=packing))
    said = capsys.readouterr().err
    assert ("tried before step 1: the largest pass" in said) == (device == "cuda")


def test_a_run_that_runs_out_of_memory_learns_what_it_would_have_learnt(
    device: str, on_device: Any, tiny_model: Any, tmp_path: Path
):
    """On a card the pass of eight rows needs some 600 MB, and 400 are there; one row at a time fits."""
    rows = tmp_path / "long.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n} ", "completion": "pig hen " * 24}) + "\n" for n in range(16)))
    wide = tiny_model("llama", hidden_size=512, intermediate_size=4096, spare_rows=8000) if device == "cuda" else None
    more = {"model": {"name": str(wide)}} if wide else {}
    common = {"data__train": str(rows), "train__batch_size": 8, "data__packing": "off", **more}
    free = fitune.train(on_device(run__name="free", **common)).folder
    with card_with_room_for(device, positions=500, bytes_=400 * 2**20):
        tight = fitune.train(on_device(run__name="tight", **common)).folder
    assert manifests.read(tight / "manifest.json")["memory"]["step_downs"]
    assert losses_of(tight) == pytest.approx(losses_of(free), rel=1e-4)


@pytest.mark.slow
def test_resumed_equals_whole(device: str, on_device: Any):
    common = {"train__max_steps": 4, "run__checkpoint_steps": 2}
    whole = fitune.train(on_device(run__name="whole", **common)).folder
    cut = fitune.train(on_device(run__name="cut", **common)).folder
    shutil.rmtree(cut / "checkpoints" / "checkpoint-4")
    shutil.rmtree(cut / "adapter")
    manifest = json.loads((cut / "manifest.json").read_text())
    (cut / "manifest.json").write_text(json.dumps({**manifest, "status": "interrupted"}))
    fitune.train(resume=cut)
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, cut)]
    for name, value in adapters[0].items():
        assert (value - adapters[1][name]).norm() <= 1e-4 * value.norm(), name


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_quantized_runs_with_8bit_states(
    device: str, on_device: Any, tiny_model: Any, quantization: str, optimizer: str
):
    folder = tiny_model("llama", hidden_size=64, intermediate_size=128, tie_word_embeddings=True)
    model = {"name": str(folder), "precision": "bf16", "quantization": quantization}
    result = fitune.train(on_device(model=model, lora={"rank": 64}, train__optimizer=optimizer))
    assert all(math.isfinite(loss) for loss in losses_of(result.folder)) and result.status == "finished"
