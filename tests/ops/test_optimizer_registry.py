"""The registry of optimizers: their states are what the real ones keep, and the optimizer of docs/extending.md needs a line."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from extending_page import code_of, run_python
from transformers.training_args import OptimizerNames

from fitune.ops.optimizers import OPTIMIZERS, PLANNED, of_optim
from fitune.ops.optimizers.adamw_8bit import PAGED_FROM
from fitune.ops.optimizers.optimizer import Optimizer

# On both sides of the 8-bit optimizers' thresholds, and what has no rows and columns.
SHAPES = [(64, 128), (16, 32), (7,), (400, 300)]


@pytest.mark.parametrize("optimizer", PLANNED.values(), ids=list(PLANNED))
def test_the_facts_of_an_optimizer_fit_together(optimizer: Optimizer):
    if optimizer.name in OPTIMIZERS:
        assert OptimizerNames(optimizer.optim) and of_optim(optimizer.optim) is optimizer
    for other in (optimizer.lighter, optimizer.on_cpu):
        assert not other or other in OPTIMIZERS
    if optimizer.lighter:
        lighter = OPTIMIZERS[optimizer.lighter]
        assert all(lighter.rung) and lighter.bytes_per_value() < optimizer.bytes_per_value()
    assert optimizer.paged == (optimizer.states((PAGED_FROM,), 4).paged > 0) == bool(optimizer.on_cpu)


@pytest.mark.parametrize("optimizer", [one for one in PLANNED.values() if not one.paged], ids=lambda one: one.name)
def test_states_are_what_the_real_optimizer_keeps(optimizer: Optimizer):
    torch.set_num_threads(1)
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]
    real = optimizer.make(parameters, 1e-3)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    real.step()
    kept = [value for state in real.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    sizes = {value.data_ptr(): value.numel() * value.element_size() for value in kept}
    if optimizer.name in ("adamw_foreach", "adamw_loop"):  # their step counts are on the host
        sizes = {place: size for place, size in sizes.items() if size > 4}
    assert sum(sizes.values()) == optimizer.states_of(parameters).total


def test_paged_states_are_those_of_the_optimizer_that_a_cpu_takes():
    tensors = [torch.empty(shape, device="meta") for shape in SHAPES]
    for optimizer in OPTIMIZERS.values():
        if optimizer.paged:
            paged, plain = optimizer.states_of(tensors), OPTIMIZERS[optimizer.on_cpu].states_of(tensors)
            assert paged.total == plain.total and paged.paged > 0


def test_bytes_of_a_value_by_hand():
    """AdamW: two fp32 states. In 8 bits: two bytes, and two fp32 scales for 256 values. Adafactor: a row of 4,096."""
    found = {name: optimizer.bytes_per_value() for name, optimizer in OPTIMIZERS.items()}
    assert found == {
        "adamw": 8, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256, "adafactor": 4 / 4096, "sgd": 0,
    }  # fmt: skip
    assert OPTIMIZERS["adamw"].bytes_per_value(2) == 4 and OPTIMIZERS["adamw_8bit"].bytes_per_value(2) == 2 + 8 / 256


def test_the_facts_need_no_torch(tmp_path: Path):
    code = "import sys, fitune.ops.optimizers; print({'torch', 'transformers', 'bitsandbytes'} & set(sys.modules))"
    assert run_python(code, tmp_path) == "set()"


# ---- the optimizer of docs/extending.md

LINE = """
from fitune.ops.optimizers import OPTIMIZERS
from lion_of_the_page import LION
OPTIMIZERS["lion"] = LION
"""


@pytest.fixture(scope="module")
def lion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("optimizer")
    (folder / "lion_of_the_page.py").write_text(code_of("Add an optimizer", "ops/optimizers/lion.py"))
    return folder


@pytest.mark.slow
def test_a_new_optimizer_trains_is_planned_and_told(lion: Path, tiny_llama: Path, tmp_path: Path):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": "cat " * n}) + "\n" for n in range(1, 7)))
    settings = {
        "train.optimizer": "lion", "model.name": str(tiny_llama), "model.precision": "fp32", "model.device": "cpu",
        "data.train": str(data), "data.eval_share": "0.34", "train.max_steps": "2", "train.batch_size": "2",
        "eval.samples": "0", "run.folder": str(tmp_path / "runs"), "run.name": "new",
    }  # fmt: skip
    code = f"""{LINE}
import json
import fitune
from fitune.cli.pages.doc_tables import optimizers
from fitune.cli.pages.docs import reference_text
from fitune.config.fields import all_fields
from fitune.planning.closed_form import closed_form
from fitune.planning.gpus.step_time import with_time
from fitune.planning.gpus.catalogue import find_gpu
from fitune.planning.predict import predict
from fitune.training.plan_scenario import rows_of_length, scenario_of

settings = fitune.load_settings(None, {settings!r})
fitune.train(settings)
try:
    fitune.load_settings(None, {{"train.optimizer": "lionn"}})
except fitune.SettingsError as error:
    unknown = error.faults[0]
gpu, config = find_gpu("T4"), json.loads(open({str(tiny_llama / "config.json")!r}).read())
plans = {{}}
for name in ("lion", "sgd"):
    scenario = scenario_of(
        settings.model_copy(update={{"train": settings.train.model_copy(update={{"optimizer": name}})}}),
        **vars(rows_of_length(settings, 64)),
    )
    made = with_time(predict(config, scenario, gpu), scenario, gpu)
    plans[name] = [made.parts.get("optimizer states", 0), made.trained_parameters, made.seconds_per_step]
print(json.dumps({{
    "choices": all_fields()["train.optimizer"].choices, "unknown": unknown, "plans": plans,
    "told": "lion: Lion (arXiv 2302.06675), one fp32 state." in reference_text(),
    "row": [row for row in optimizers() if "`lion`" in row],
    "closed": closed_form(config, scenario.but(optimizer="lion"))["parts"],
}}))
"""
    found = json.loads(run_python(code, lion).splitlines()[-1])
    logged = [json.loads(line) for line in (tmp_path / "runs/new/metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in logged if row["kind"] == "train"]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    assert found["choices"] == [*OPTIMIZERS, "lion"] and 'did you mean "lion"' in found["unknown"]
    assert found["told"] and found["row"][0].startswith("| `lion` | 4.00 | bitsandbytes |")
    states, trained, seconds = found["plans"]["lion"]
    assert states >= 4 * trained and found["plans"]["sgd"][0] == 0 and seconds > found["plans"]["sgd"][2]
    assert found["closed"]["optimizer states"] == found["closed"]["gradients"]
