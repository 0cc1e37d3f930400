"""One process, two and three ranks: the same losses, gradients, evaluations and weights to fp32 rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
from on_ranks import check_equal, run_on

import fitune

pytestmark = pytest.mark.slow

RECIPES = {
    "packs": {},
    # Two rows a step: the third rank has none.
    "padded-full": {
        "data__packing": "off",
        "train__tuning": "full",
        "train__learning_rate": 1e-3,
        "train__batch_size": 2,
        "train__micro_batch_size": 1,
        "train__max_steps": 20,
        "eval__every_steps": 10,
    },
}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Folders of the runs of one process, made once."""
    return tmp_path_factory.mktemp("alone"), {}


# Run before a job, on every rank; `replace(module, name, made_of)` is undone behind it.
OUT_OF_MEMORY_ON_RANK_1 = """
import torch
from fitune.trainers import packed
calls = []
def tight(loss, *args, **kwargs):
    calls.append(1)
    if rank == 1 and len(calls) == 30:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return loss(*args, **kwargs)
replace(packed, "pack_loss", tight)
"""
FULL_DISK_ON_RANK_0 = """
from fitune.trainers import base
def full(save, *args, **kwargs):
    raise OSError(28, "No space left on device")
replace(base, "save_file", full)
"""
FAULT_ON_RANK_1 = """
from fitune.training import setup
from fitune.errors import DataError
def faulty(read, *args):
    if rank == 1:
        raise DataError("rows.jsonl: row 3 is no row")
    return read(*args)
replace(setup, "read_data", faulty)
"""
OTHER_PACKAGES_ON_RANK_1 = """
from fitune.runs import manifest
replace(manifest, "versions", lambda versions: {**versions(), "peft": f"0.{rank}"})
"""
UNSEEN_BY_RANK_1 = """
from fitune.training import run
replace(run, "seen_by_all", lambda seen, folder: seen(folder / "elsewhere" if rank else folder))
"""
FAULTS = {
    "full-disk": (FULL_DISK_ON_RANK_0, "no space is left on its disk"),
    "fault": (FAULT_ON_RANK_1, "rank 1: rows.jsonl: row 3 is no row"),
    "versions": (OTHER_PACKAGES_ON_RANK_1, "rank 1 has another peft than rank 0 (0.1 instead of 0.0)"),
    "unseen": (UNSEEN_BY_RANK_1, "set run.folder to a folder that all machines share"),
}


@pytest.mark.parametrize("count", [2, 3])
def test_ranks_train_what_one_process_trains(tmp_path, job, alone, count):
    folder, made = alone
    for name, changed in RECIPES.items():
        if name not in made:
            made[name] = fitune.train(fitune.Settings(**job(folder, name, **changed)["settings"])).folder
    jobs = [job(tmp_path, name, **changed) for name, changed in RECIPES.items()]
    if count == 2:  # beside them what goes wrong on one rank: starting the processes costs more than the runs
        jobs += [{**job(tmp_path, "tight"), "before": OUT_OF_MEMORY_ON_RANK_1}]
        jobs += [{**job(tmp_path, name), "before": before} for name, (before, _) in FAULTS.items()]
    results = run_on(count, jobs)
    for name, result in zip(RECIPES, results[0], strict=False):
        assert result["steps"] == 20
        check_equal(made[name], Path(result["folder"]))
    if count == 2:
        check_equal(made["packs"], tmp_path / "tight")
        for place, (_, said) in enumerate(FAULTS.values(), start=3):
            assert said in results[0][place]["error"] and results[0][place]["told"]
            assert not results[1][place]["told"]
