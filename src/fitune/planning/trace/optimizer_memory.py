"""What an optimizer's step allocates: states in the first step, temporaries in every one.

In: parameters with gradients, on meta. Out: events in the recorder, bytes of managed memory.
The sizes are the optimizer's own facts (`fitune.ops.optimizers`), since most kernels do not run on meta; where its code
does, that is run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from fitune.ops.optimizers import PLANNED
from fitune.ops.optimizers.optimizer import Optimizer
from fitune.planning.trace.recorder import Recorder

if TYPE_CHECKING:
    from fitune.planning.trace.dry_run import Program

STATES = "optimizer states"
TEMPORARIES = "optimizer temporaries"


def optimizer_step(recorder: Recorder, program: Program) -> int:
    """Clip, step and let the gradients go, as `Program.optimizer_step` does on a GPU.

    Returns:
        Bytes of managed memory that the states hold, which torch's allocator does not count.
    """
    scenario, parameters = program.scenario, [p for p in program.trained() if p.grad is not None]
    optimizer, managed = PLANNED[scenario.optimizer], 0
    if scenario.max_grad_norm:
        with recorder.labelled(TEMPORARIES):
            torch.nn.utils.clip_grad_norm_(parameters, scenario.max_grad_norm)
    if optimizer.runs_on_meta:
        program.optimizer_step_only(recorder, STATES, TEMPORARIES)
    else:
        if program.states is None:
            program.states = {}
        managed = _by_size(recorder, optimizer, parameters, program.states)
    program.model.zero_grad(set_to_none=True)
    return managed


def _by_size(
    recorder: Recorder,
    optimizer: Optimizer,
    parameters: list[nn.Parameter],
    states: dict[int, list[torch.Tensor] | int],
) -> int:
    """States of parameters that have none yet, and the temporaries; ``states`` holds the managed bytes under 0."""
    managed = cast(int, states.get(0, 0))
    with recorder.labelled(STATES):
        if not states:
            states[-1] = _made(optimizer.once)
        for parameter in parameters:
            if id(parameter) not in states:
                kept = optimizer.states(tuple(parameter.shape), parameter.element_size())
                states[id(parameter)] = _made(kept.held)
                managed += kept.paged
    states[0] = managed
    with recorder.labelled(TEMPORARIES):
        sizes = [parameter.numel() * parameter.element_size() for parameter in parameters]
        for group in optimizer.temporaries(sizes):
            held = _made(group)
            del held
    return managed


def _made(sizes: Sequence[int]) -> list[torch.Tensor]:
    return [torch.empty(size, dtype=torch.uint8, device="meta") for size in sizes]
