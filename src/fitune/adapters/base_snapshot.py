"""The frozen base under an adapter: what it was, whether it still is, and putting it back.

In: a model, bare or with adapters. Out: digests of the base's stored tensors, copies of the layers that a merge
changes, and how well a base came back.
Knows nothing of files.

An adapter's own tensors are no part of the base. Names are those of the bare model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fitune.models.base_model import base_model_of
from fitune.models.quantization.quantization import Quantization
from fitune.models.quantization.quantize import dense_weight, is_quantized, kind_of, scales

# PEFT's names for the frozen layer inside each of its wrappers, and for what it trains beside it.
WRAPPERS = ("base_layer", "original_module", "token_adapter")
TRAINED = ("modules_to_save", "trainable_tokens_delta", "trainable_tokens_original")


@dataclass(frozen=True)
class Restored:
    """How a base came back. `bits` are those of each layer's largest weight that are right; None when all are."""

    exact: bool
    bits: float | None
    tensors: int
    worst: str | None = None

    def __str__(self) -> str:
        if self.exact:
            return f"the base is restored bit for bit ({self.tensors} tensors compared)"
        return (
            f"the base is restored to {self.bits:.1f} bits of each layer's largest weight (worst: {self.worst}); "
            "the rest was rounded away by the merge"
        )


@dataclass(frozen=True)
class Packed:
    """How a quantized layer holds its weight: the parameter itself, and the state that unpacks it."""

    parameter: Tensor
    kind: Quantization
    state: object


@dataclass(frozen=True)
class Stored:
    """The stored tensors of a layer."""

    bias: Tensor | None
    weight: Tensor
    packed: Packed | None = None


@dataclass
class Copies:
    """What the layers held before a merge: {name: (layer, its stored tensors)}; of experts {name: (module, parameters)}."""

    layers: dict[str, tuple[nn.Linear, Stored]] = field(default_factory=dict[str, tuple[nn.Linear, "Stored"]])
    experts: dict[str, tuple[nn.Module, dict[str, Tensor]]] = field(
        default_factory=dict[str, tuple[nn.Module, dict[str, Tensor]]]
    )

    def __len__(self) -> int:
        return len(self.layers) + len(self.experts)

    @property
    def num_bytes(self) -> int:
        """Memory that the copies take."""
        fused = [tensor for _, held in self.experts.values() for tensor in held.values()]
        return sum(_num_bytes(state) for _, state in self.layers.values()) + sum(tensor.nbytes for tensor in fused)


def _num_bytes(state: Stored) -> int:
    held = [state.bias, state.weight]
    if state.packed is not None:
        held += [state.packed.parameter, state.packed.state]
    return sum(tensor.numel() * tensor.element_size() for tensor in held if isinstance(tensor, Tensor))


def base_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every stored tensor of the base by its name in the bare model: weights, biases, scales of quantized layers."""
    found: dict[str, Tensor] = {}
    for name, module in _base_modules(model):
        for kind, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            found[f"{name}.{kind}"] = parameter.detach()
        if is_quantized(module):
            found |= {f"{name}.weight.scales.{index}": scale for index, scale in enumerate(scales(module))}
    return found


def digests(model: nn.Module, every: int = 1) -> dict[str, str]:
    """SHA-256 of each of the base's tensors, type and shape included.

    Args:
        every: 1 takes all values; 1,000 takes each thousandth, for a proof by sample that costs no time.
    """
    return {
        name: hashlib.sha256(
            f"{tensor.dtype}{tuple(tensor.shape)}".encode()
            + tensor.flatten()[::every].contiguous().cpu().view(torch.uint8).numpy().tobytes()
        ).hexdigest()
        for name, tensor in base_tensors(model).items()
    }


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Names whose digests differ, or that are on one side only."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """(name in the bare model, frozen layer) of every layer that an adapter lies over."""
    root = base_model_of(model)
    for name, module in root.named_modules():
        if isinstance(module, BaseTunerLayer):
            yield _plain(name), cast(nn.Linear, module.get_base_layer())


def copy_layers(model: nn.Module) -> Copies:
    """The stored weights of the adapted layers, beside the model: on the CPU, or for a quantized layer where it is."""
    copies = Copies()
    for name, layer in adapted_layers(model):
        if getattr(layer, "weight", None) is not None:
            copies.layers[name] = (layer, _stored(layer))
        elif name not in copies.experts:  # wrapped once for each of their parameters
            fused = layer.named_parameters(recurse=False)
            copies.experts[name] = (layer, {own: weight.detach().to("cpu", copy=True) for own, weight in fused})
    return copies


def put_back(copies: Copies) -> None:
    """Give each layer what it held when it was copied."""
    for layer, fused in copies.experts.values():
        for own, tensor in fused.items():
            layer.get_parameter(own).data = tensor.to(layer.get_parameter(own).device)
    for layer, state in copies.layers.values():
        if state.bias is not None:
            layer.bias.data = state.bias.to(layer.bias.device)
        if (packed := state.packed) is None:
            layer.weight.data = state.weight.to(layer.weight.device)
            continue
        packed.parameter.data = state.weight
        packed.kind.put_back(layer, cast("nn.Parameter", packed.parameter), packed.state)
        layer.weight = packed.parameter


def compare(copies: Copies) -> Restored:
    """The layers as they are against what they were when copied."""
    worst, name_of_worst, exact = math.inf, None, True
    for name, now, then in _beside(copies):
        largest, error = then.abs().max().item(), (now - then).abs().max().item()
        exact &= error == 0
        if error > 0 and (bits := math.log2(largest / error)) < worst:
            worst, name_of_worst = bits, name
    for layer, state in copies.layers.values():
        if is_quantized(layer):
            exact &= torch.equal(layer.weight.data.cpu(), state.weight.cpu())
    return Restored(exact, None if exact else worst, len(copies), name_of_worst)


def _beside(copies: Copies) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, weights as they are, as they were), in fp32; of experts each parameter by itself."""
    for name, (layer, state) in copies.layers.items():
        yield name, dense_weight(layer).float().cpu(), _dense(state).float().cpu()
    for name, (layer, fused) in copies.experts.items():
        for own, tensor in fused.items():
            yield f"{name}.{own}", layer.get_parameter(own).detach().float().cpu(), tensor.float()


def _stored(layer: nn.Linear) -> Stored:
    bias: Tensor | None = getattr(layer, "bias", None)
    kept = None if bias is None else bias.detach().clone()
    if (kind := kind_of(layer)) is None:
        return Stored(kept, layer.weight.detach().to("cpu", copy=True))
    # PEFT replaces a quantized weight by a new one, so the old tensors need no second copy.
    return Stored(kept, layer.weight.data, Packed(layer.weight, kind, kind.state(layer)))


def _dense(state: Stored) -> Tensor:
    """The weights that a copy stands for."""
    return state.weight if state.packed is None else state.packed.kind.unpack(state.weight, state.packed.state)


def _base_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    root = base_model_of(model)
    for name, module in root.named_modules():
        parts = name.split(".")
        if not any(part.startswith("lora_") or part in TRAINED for part in parts):
            yield _plain(name), module


def _plain(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
