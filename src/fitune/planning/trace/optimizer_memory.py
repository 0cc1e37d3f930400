"""What an optimizer's step allocates: states in the first step, temporaries in every one.

In: parameters with gradients, on meta. Out: events in the recorder, bytes of managed memory.
The formulas follow torch/optim (adam.py, 2.5 to 2.15) and bitsandbytes/optim/optimizer.py (0.45 to 0.50), whose kernels
do not run on meta; Adafactor's own code does. Imports only torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

STATES = "optimizer states"
TEMPORARIES = "optimizer temporaries"
PAGED_FROM = 100_000  # Optimizer8bit.get_state_buffer: smaller tensors are not paged
SMALLEST_8BIT = 4096  # min_8bit_size: smaller tensors keep fp32 states
BLOCK_8BIT = 256


def optimizer_step(recorder: Any, program: Any) -> int:
    """Clip, step and let the gradients go, as `Program.optimizer_step` does on a GPU.

    Returns:
        Bytes of managed memory that the states hold, which torch's allocator does not count.
    """
    scenario, parameters = program.scenario, [p for p in program.trained() if p.grad is not None]
    if scenario.max_grad_norm:
        with recorder.labelled(TEMPORARIES):
            torch.nn.utils.clip_grad_norm_(parameters, scenario.max_grad_norm)
    if scenario.optimizer == "adafactor":
        program.optimizer_step_only(recorder, STATES, TEMPORARIES)
        managed = 0
    else:
        if program.states is None:
            program.states = {}
        managed = _formula(recorder, scenario.optimizer, parameters, program.states)
    program.model.zero_grad(set_to_none=True)
    return managed


def _formula(recorder: Any, name: str, parameters: list[nn.Parameter], states: dict[int, Any]) -> int:
    managed = 0
    with recorder.labelled(STATES):
        if not states and "8bit" in name:
            states[-1] = [_made(256, torch.float32) for _ in range(2)]  # the two quantization maps
        for parameter in parameters:
            if id(parameter) not in states:
                states[id(parameter)], more = states_of(name, parameter)
                managed += more
    states[0] = managed = states.get(0, 0) + managed
    with recorder.labelled(TEMPORARIES):
        _temporaries(name, parameters)
    return managed


def states_of(name: str, parameter: torch.Tensor) -> tuple[list[torch.Tensor], int]:
    """(states on the card, bytes in managed memory) of one parameter."""
    count, dtype = parameter.numel(), parameter.dtype
    if name == "sgd":
        return [], 0
    if name == "adamw":  # the fused kernel keeps its step count on the card
        return [_made(1, torch.float32), _made(count, dtype), _made(count, dtype)], 0
    if name in ("adamw_foreach", "adamw_loop"):
        return [_made(count, dtype), _made(count, dtype)], 0
    paged = "paged" in name and count >= PAGED_FROM
    if name == "paged_adamw" or count < SMALLEST_8BIT:
        return ([], 8 * count) if paged else ([_made(count, torch.float32) for _ in range(2)], 0)
    blocks = -(-count // BLOCK_8BIT)
    scales = [_made(blocks, torch.float32) for _ in range(2)]
    return (scales, 2 * count) if paged else ([*scales, *(_made(count, torch.uint8) for _ in range(2))], 0)


def _temporaries(name: str, parameters: list[nn.Parameter]) -> None:
    if name == "adamw_foreach":
        # _multi_tensor_adam: _foreach_sqrt of every second moment at once
        roots = [torch.empty_like(parameter) for parameter in parameters]
        del roots
    elif name == "adamw_loop":
        for parameter in parameters:  # _single_tensor_adam: sqrt, then its quotient
            root = torch.empty_like(parameter)
            quotient = torch.empty_like(parameter)
            del root, quotient


def _made(count: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(count, dtype=dtype, device="meta")
