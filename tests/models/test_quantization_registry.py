"""The registry of quantizations: their figures are what is stored, and the one of docs/extending.md needs a line there."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from extending_page import code_of, run_python
from torch import nn

from fitune.config.fields import all_fields
from fitune.config.settings_loader import load_settings
from fitune.errors import ModelError, SettingsError
from fitune.models.quantization import QUANTIZATIONS, either, rungs_below
from fitune.models.quantization.quantization import Layer, Quantization
from fitune.models.quantization.quantize import QuantizationConfig, kind_of

KINDS = [
    (kind, double) for kind in QUANTIZATIONS.values() for double in (False, True) if kind.double_quant or not double
]


def packed(kind: Quantization, double: bool, device: str = "cpu") -> tuple[Any, torch.Tensor]:
    """A layer of 512 by 1,024 that stores random weights, and these."""
    torch.set_num_threads(1)
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0)).to(device)
    shape = Layer(inputs=1024, outputs=512, bias=False, compute=torch.float32, double_quant=double)
    with torch.device("meta"):
        layer: Any = kind.make_layer(shape)
    layer.weight = kind.pack(weight, layer, device)
    return layer, weight


@pytest.mark.parametrize(("kind", "double"), KINDS, ids=[f"{kind.name} {double}" for kind, double in KINDS])
def test_bits_of_a_weight_are_those_that_are_stored(kind: Quantization, double: bool):
    layer, weight = packed(kind, double)
    tensors = [layer.weight.data, *kind.scales(kind.state(layer))]
    stored = 8 * sum(tensor.numel() * tensor.element_size() for tensor in tensors) / weight.numel()
    assert stored == pytest.approx(kind.bits_per_weight(1024, double), abs=0.02)  # and the levels, once a layer


@pytest.mark.parametrize(("kind", "double"), KINDS, ids=[f"{kind.name} {double}" for kind, double in KINDS])
def test_a_layer_is_known_unpacked_and_put_back(kind: Quantization, double: bool):
    layer, weight = packed(kind, double)
    assert kind_of(layer) is kind and kind_of(nn.Linear(2, 2)) is None
    state, held = kind.state(layer), layer.weight
    before = kind.unpack(held.data, state)
    assert 0 < (before - weight).abs().max() < 0.2 * weight.abs().max()
    other, _ = packed(kind, double)
    kind.put_back(layer, other.weight, kind.state(other))
    layer.weight = other.weight  # as a merge leaves it
    kind.put_back(layer, held, state)
    layer.weight = held
    assert torch.equal(kind.unpack(layer.weight.data, kind.state(layer)), before)
    assert kind_of(packed(kind, double, "meta")[0]) is kind


def test_the_ladder_takes_what_has_fewer_bits():
    assert rungs_below(math.inf) == ["int8", "nf4"] and rungs_below(8) == ["nf4"] and rungs_below(4) == []
    assert either(["a"]) == "a" and either(["a", "b", "c"]) == "a, b or c"


def test_the_facts_need_no_torch(tmp_path: Path):
    code = "import sys, fitune.models.quantization; print({'torch', 'transformers', 'bitsandbytes'} & set(sys.modules))"
    assert run_python(code, tmp_path) == "set()"


def test_a_quantization_of_a_later_version_is_refused_by_name():
    with pytest.raises(ModelError, match=r'no quantization "int9".*; use one of none, int8, nf4, fp4'):
        _ = QuantizationConfig("int9").facts


# ---- what a CPU does not compute


@pytest.fixture
def not_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    facts = {name: getattr(QUANTIZATIONS["fp4"], name) for name in Quantization.__dataclass_fields__}
    changed = {**facts, "name": "gpu4", "trains_on_cpu": False, "holds": lambda module: False}
    monkeypatch.setitem(QUANTIZATIONS, "gpu4", Quantization(**changed))
    all_fields.cache_clear()
    yield
    monkeypatch.undo()
    all_fields.cache_clear()


@pytest.mark.usefixtures("not_on_a_cpu")
def test_what_a_cpu_does_not_compute_is_refused_before_the_weights_are_read(settings_of: Any):
    import fitune

    with pytest.raises(SettingsError, match=r"is gpu4, and model\.device is cpu, which does not compute it"):
        load_settings(None, {"model.quantization": "gpu4", "model.device": "cpu"})
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="is gpu4, which a CPU does not compute; use a GPU, or another of int8"):
            fitune.train(settings_of(model__quantization="gpu4", model__device="auto"))
    with pytest.raises(SettingsError, match=r"a CPU does not compute it over int8; use model\.quantization nf4"):
        load_settings(None, {"model.quantization": "int8", "model.device": "cpu", "lora.dora": "true"})


# ---- the quantization of docs/extending.md

LINE = """
from fitune.models.quantization import QUANTIZATIONS
from w8_of_the_page import W8
QUANTIZATIONS["w8"] = W8
"""


@pytest.fixture(scope="module")
def w8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantization")
    (folder / "w8_of_the_page.py").write_text(code_of("Add a quantization", "models/quantization/w8.py"))
    return folder


@pytest.mark.slow
def test_a_new_quantization_trains_and_comes_back(w8: Path, tiny_llama: Path, tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": "cat " * n}) + "\n" for n in range(1, 9)))
    settings = {
        "model.quantization": "w8", "model.name": str(tiny_llama), "model.precision": "bf16", "model.device": "cpu",
        "data.train": str(data), "data.eval_share": "0.25", "train.max_steps": "3", "train.batch_size": "2",
        "train.learning_rate": "0.01", "eval.samples": "1", "eval.max_new_tokens": "4", "lora.init": "loftq",
        "run.folder": str(tmp_path / "runs"), "run.name": "new",
    }  # fmt: skip
    code = f"""{LINE}
import json
import fitune
from fitune.adapters.in_memory import merge
from fitune.evaluation.inference_model import open_target
from fitune.models.quantization.quantize import quantized_layers, stored_as

result = fitune.train(fitune.load_settings(None, {settings!r}))
model = open_target(str(result.folder), device="cpu", precision="bf16").model
try:
    merge(model)
except fitune.ModelError as error:
    refused = str(error)
print(json.dumps({{
    "before": result.before["loss"], "after": result.after["loss"], "layers": len(quantized_layers(model)),
    "kind": stored_as(model).kind, "refused": refused,
}}))
"""
    found = json.loads(run_python(code, w8).splitlines()[-1])
    assert found["after"] < found["before"] and (found["layers"], found["kind"]) == (14, "w8")
    assert "stored in w8, into which PEFT cannot merge" in found["refused"]
    facts = json.loads((tmp_path / "runs/new/adapter/fitune.json").read_text())
    assert facts["quantization"]["kind"] == "w8" and facts["init"] == "loftq"


@pytest.mark.slow
def test_a_new_quantization_is_in_settings_rules_plan_ladder_and_documents(w8: Path, tiny_llama: Path):
    code = f"""{LINE}
import json
import fitune
from fitune.cli.pages.doc_tables import quantizations
from fitune.cli.pages.docs import reference_text
from fitune.config.fields import all_fields
from fitune.planning.closed_form import stored_bytes
from fitune.planning.cpu_memory import plan_cpu
from fitune.planning.gpus.catalogue import find_gpu
from fitune.planning.predict import predict
from fitune.planning.search.grid import AXES
from fitune.planning.search.ladder import QUANTIZATION, price_of
from fitune.planning.search.ladder_search import _Search
from fitune.training.autofit_search import start_of
from fitune.training.plan_scenario import rows_of_length, scenario_of

def faults(**given):
    try:
        fitune.load_settings(None, {{key.replace("__", "."): value for key, value in given.items()}})
    except fitune.SettingsError as error:
        return error.faults
    return []

settings, config = fitune.Settings(), json.loads(open({str(tiny_llama / "config.json")!r}).read())
plans = {{}}
for weights in ("bf16", "w8", "int8"):
    scenario = scenario_of(settings, **vars(rows_of_length(settings, 64))).but(weights=weights)
    made = predict(config, scenario, find_gpu("T4"))
    plans[weights] = [made.parts["weights"], made.total_parameters, plan_cpu(config, scenario, 16).parts["weights"]]
search = _Search(start_of(settings, [64]), None, None)
print(json.dumps({{
    "choices": all_fields()["model.quantization"].choices, "plans": plans,
    "unknown": faults(model__quantization="w9"), "double": faults(model__quantization="w8", model__double_quant="true"),
    "full": faults(model__quantization="w8", train__tuning="full"), "loftq": faults(lora__init="loftq"),
    "rungs": search.values(QUANTIZATION, frozenset()), "price": price_of(QUANTIZATION, "w8"), "grid": list(AXES["weights"]),
    "told": "w8: 8 bits, one scale per row" in reference_text(), "row": [row for row in quantizations() if "`w8`" in row],
    "closed": stored_bytes(scenario.but(weights="w8"), 64),
}}))
"""
    found = json.loads(run_python(code, w8).splitlines()[-1])
    assert found["choices"] == ["none", *QUANTIZATIONS, "w8"] and "use one of none, int8" in found["unknown"][0]
    assert "is w8, which has no block scales; use nf4 or fp4" in found["double"][0]
    assert "is w8, and train.tuning is full" in found["full"][0] and "int8, nf4, fp4 or w8" in found["loftq"][0]
    assert found["rungs"] == ["none", "int8", "w8", "nf4"] and found["price"][0] == "base weights in 8 bits"
    assert found["grid"] == ["fp32", "bf16", "int8", "w8", "nf4"]
    assert found["told"] and found["row"] == [
        "| `w8` | 8, and 32 a row | yes | 8 bits, one scale per row, inputs not quantized |"
    ]
    assert found["closed"] == 1 + 4 / 64
    dense, eight, other = (found["plans"][weights] for weights in ("bf16", "w8", "int8"))
    assert eight[0] == pytest.approx(other[0], rel=0.02) and dense[1] == eight[1] == other[1]
    assert eight[0] < 0.9 * dense[0] and eight[2] < dense[2]


def test_the_error_of_a_weight_is_half_a_step(w8: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(os.fspath(w8))
    from importlib import import_module

    kind = import_module("w8_of_the_page").W8
    layer, weight = packed(kind, False)
    error = (kind.unpack(layer.weight.data, kind.state(layer)) - weight).abs()
    assert torch.all(error <= weight.abs().amax(1, keepdim=True) / 254 * 1.0001) and error.max() > 0
