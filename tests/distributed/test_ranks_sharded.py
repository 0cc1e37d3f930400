"""FSDP2 on two ranks: the losses and weights of one process, the pieces that were asked for, resumed on another number."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from on_ranks import check_equal, run_on

import fitune

pytestmark = pytest.mark.slow

FSDP2 = {"parallel__strategy": "fsdp2"}
STEPS = {"train__max_steps": 8, "train__lr_scheduler": "constant", "eval__every_steps": 4, "run__keep_checkpoints": 9}
RECIPES = {
    "packs": STEPS,
    "padded": {**STEPS, "data__packing": "off"},
    "full": {**STEPS, "train__tuning": "full", "train__learning_rate": 1e-3},
}
# Each rank holds half of every layer, and the rest whole.
PIECES = """
from fitune.training import run
def checked(shard, model, *args):
    from torch.distributed.tensor import DTensor
    whole = sum(value.numel() for value in model.parameters())
    count = shard(model, *args)
    layers = [value for name, value in model.named_parameters() if ".layers." in name]
    assert count == 2 and all(isinstance(value, DTensor) for value in layers)
    assert sum(value.to_local().numel() for value in layers) * 2 == sum(value.numel() for value in layers)
    assert sum(value.numel() for value in model.parameters()) == whole
    return count
replace(run, "shard", checked)
"""


def test_two_ranks_hold_half_and_train_the_same(tmp_path, job):
    made = {
        name: fitune.train(fitune.Settings(**job(tmp_path / "one", name, **changed)["settings"])).folder
        for name, changed in RECIPES.items()
    }
    jobs = [job(tmp_path / "two", name, **changed, **FSDP2) for name, changed in RECIPES.items()]
    jobs[0]["before"] = PIECES
    results = run_on(2, jobs)[0]
    assert [result.get("error") for result in results] == [None] * len(RECIPES)
    for name, result in zip(RECIPES, results, strict=True):
        check_equal(made[name], Path(result["folder"]))
    # Back to step 4, and on with three ranks: as if nothing had happened.
    run = Path(shutil.copytree(tmp_path / "two" / "full", tmp_path / "three" / "full"))
    for last in (run / "checkpoints").glob("checkpoint-8"):
        shutil.rmtree(last)
    manifest = run / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"finished"', '"interrupted"'))
    shutil.rmtree(run / "model")
    (result,) = run_on(3, [{"resume": str(run)}])[0]
    assert result.get("error") is None
    check_equal(made["full"], run)
