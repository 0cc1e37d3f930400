"""FSDP2: each decoder layer cut into as many pieces as there are ranks, gathered when it is computed.

In: a model with its adapters, on the CPU or a GPU. Out: the same model, its layers sharded in their own types.
Embeddings, the last norm and the head stay whole on every rank: losses read the head's weight beside its forward pass.
Gradients of sharded parameters are summed by FSDP2 in fp32, those of the others by rank_step.py.

Ranks compute in lockstep: a layer is gathered by all of them together, so each must take as many passes as the others.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fitune.distributed import ranks
from fitune.errors import ModelError
from fitune.models.base_model import base_model_of
from fitune.models.towers import decoder_layers, text_model

OPTIMIZER_FOLDER = "optimizer"


def shard(model: nn.Module, device: str) -> int:
    """Shard the decoder layers of ``model`` over all ranks, and move the rest to the device.

    Args:
        device: cpu or cuda.

    Returns:
        How many layers were sharded.

    Raises:
        ModelError: the model has no list of layers.
    """
    body = text_model(base_model_of(model))
    layers = decoder_layers(body)
    if not layers:
        raise ModelError("parallel.strategy is fsdp2, and this model has no list of layers to shard; use ddp")
    mesh = init_device_mesh(device, (ranks.size(),))
    policy = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    inside = {value for layer in layers for value in layer.parameters()}
    others = {value for value in body.parameters() if value not in inside}
    fully_shard(body, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=others)
    for module in (*layers, body):
        cast(FSDPModule, module).set_gradient_divide_factor(1.0)  # losses are divided already
        cast(FSDPModule, module).set_force_sum_reduction_for_comms(True)  # gloo knows no other
    if device != "cpu":
        for value in (*model.parameters(), *model.buffers()):
            if not isinstance(value, DTensor):
                value.data = value.data.to(device)
    return len(layers)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called for it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def local(value: Tensor) -> Tensor:
    """This rank's piece of a tensor; a tensor that is not sharded is it itself."""
    return value.to_local() if isinstance(value, DTensor) else value


def whole(value: Tensor) -> Tensor:
    """All of a tensor; every rank must ask for it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def put(value: Tensor, saved: Tensor) -> None:
    """Write all of a tensor; each rank keeps its piece."""
    if isinstance(value, DTensor):
        saved = distribute_tensor(saved.to(value.device), value.device_mesh, value.placements, src_data_rank=None)
    value.copy_(saved)


@contextmanager
def trained_whole(model: nn.Module) -> Generator[None]:
    """While trained parameters are whole, on the CPU, where this is rank 0; every rank must come here.

    What reads the model's state to save it finds plain tensors. Nothing may be computed meanwhile.
    """
    kept: list[tuple[nn.Module, str, nn.Parameter]] = []
    for module in model.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            if value.requires_grad and isinstance(value, DTensor):
                full = value.full_tensor().detach()
                if ranks.is_first():
                    kept.append((module, name, value))
                    module.register_parameter(name, nn.Parameter(full.cpu()))
    try:
        yield
    finally:
        for module, name, value in kept:
            module.register_parameter(name, value)


def save_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Each rank writes its pieces of the optimizer's states; any number of ranks can read them."""
    states = get_optimizer_state_dict(model, optimizer)
    save({"optimizer": states}, checkpoint_id=folder / OPTIMIZER_FOLDER)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Each rank reads its pieces."""
    states = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    load(states, checkpoint_id=folder / OPTIMIZER_FOLDER)
    set_optimizer_state_dict(model, optimizer, states["optimizer"])


def broadcast_whole(values: Sequence[Tensor]) -> None:
    """Rank 0's values on every rank, of those that are not sharded."""
    for value in values:
        if not isinstance(value, DTensor):
            distributed.broadcast(value.data, src=0)
