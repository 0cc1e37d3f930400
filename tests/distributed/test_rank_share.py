"""The plan of one rank: bytes of weights, gradients and states equal those of the real pieces, to the byte."""

from __future__ import annotations

import pytest
from on_ranks import run_on

pytestmark = pytest.mark.slow

# Behind the last step rank 0 counts what it holds, and asks the plan's own count of the same model.
COUNTED = """
import torch
from fitune.models.base_model import base_model_of
from fitune.models.towers import decoder_layers, text_model
from fitune.planning.rank_share import share_of
from fitune.trainers import base
from fitune.trainers.parallel.sharding import local
from fitune.training import run
def size(tensors):
    return sum(one.numel() * one.element_size() for one in tensors)
def sharded(shard, model, *args):
    layers = decoder_layers(text_model(base_model_of(model)))
    model.planned = share_of(model, layers, 2, "adamw")
    return shard(model, *args)
def stepped(share_step, values, *args):
    told = share_step(values, *args)
    seen["gradients"] = size(local(value.grad) for value in values)
    return told
def saved(save, model, optimizer, folder):
    states = [local(one) for state in optimizer.state.values() for one in state.values() if torch.is_tensor(one)]
    found = size(local(value) for value in model.parameters()), seen["gradients"], size(s for s in states if s.dim())
    planned = model.planned.weights, model.planned.gradients, model.planned.states
    if rank == 0:
        assert found[:2] == planned[:2], (found, planned)
        # The plan counts AdamW's step numbers, 4 bytes a tensor, which have no dimension.
        assert found[2] + size(s for s in states if not s.dim()) == planned[2], (found, planned)
    return save(model, optimizer, folder)
seen = {}
replace(run, "shard", sharded)
replace(base, "share_step", stepped)
replace(base, "save_optimizer", saved)
"""


def test_a_ranks_bytes_are_planned_to_the_byte(tmp_path, job):
    short = {"train__max_steps": 2, "eval__samples": 0, "parallel__strategy": "fsdp2"}
    full = {"train__tuning": "full", "train__learning_rate": 1e-3}
    jobs = [job(tmp_path, "lora", **short, lora__rank=3), job(tmp_path, "full", **short, **full)]
    results = run_on(2, [{**one, "before": COUNTED} for one in jobs])[0]
    assert [result.get("error") for result in results] == [None, None]
