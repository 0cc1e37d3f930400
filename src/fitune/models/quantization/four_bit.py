"""What bitsandbytes' two 4-bit types share: 16 levels, a scale for each block of 64 weights."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fitune.models.quantization.quantization import SCALES_IN_A_BLOCK, Layer, Quantization

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fitune.models.quantization.quantization import Device

BLOCK = 64  # bitsandbytes' default
SLICE = 2**24  # weights that a CPU packs at once; whole blocks


def four_bit(name: str, help: str, rung: tuple[str, str] | None = None) -> Quantization:
    """The quantization of one of bitsandbytes' types, ``name`` as it calls it.

    A CPU computes whole blocks alone: bitsandbytes 0.50 packs the others rightly, but its kernel begins a new block with
    each row, so that a weight is off by up to its block's largest. Most models have none of these (hidden sizes are
    multiples of 64).
    """
    return Quantization(
        name=name,
        help=help,
        bits=4,
        block=BLOCK,
        double_quant=True,
        rung=rung,
        loader={"load_in_4bit": True, "bnb_4bit_quant_type": name},
        cpu_inputs=BLOCK,
        make_layer=partial(_make_layer, name),
        pack=_pack,
        holds=partial(_holds, name),
        state=_state,
        unpack=_unpack,
        scales=_scales,
        put_back=_put_back,
    )


def _layers() -> Any:
    """bitsandbytes' classes, without its types, which do not fit what is called here."""
    import bitsandbytes.nn

    return bitsandbytes.nn


def _make_layer(name: str, layer: Layer) -> nn.Module:
    bnb = _layers()
    return bnb.Linear4bit(
        layer.inputs, layer.outputs, layer.bias, layer.compute,
        compress_statistics=layer.double_quant, quant_type=name,
    )  # fmt: skip


def _pack(weight: Tensor, layer: nn.Module, device: Device) -> nn.Parameter:
    bnb = _layers()
    empty: Any = layer.weight
    made = bnb.Params4bit(
        weight, requires_grad=False, compress_statistics=empty.compress_statistics, quant_type=empty.quant_type,
        quant_storage=empty.quant_storage, module=layer,
    )  # fmt: skip
    if str(device) == "cpu" and weight.numel() > SLICE:
        return _packed_in_slices(made, weight, layer)
    return made._quantize(device)  # `to` packs on real devices alone, and the plan packs on meta


def _packed_in_slices(made: Any, weight: Tensor, layer: nn.Module) -> nn.Parameter:
    """As bitsandbytes packs the whole, to the last bit. A CPU's packing takes 13 bytes a weight beside it."""
    import torch
    from bitsandbytes.functional import quantize_4bit, quantize_blockwise

    packed: list[Any] = [
        quantize_4bit(part, blocksize=made.blocksize, quant_type=made.quant_type, quant_storage=made.quant_storage)
        for part in weight.reshape(-1).split(SLICE)
    ]
    state, absmax = packed[0][1], torch.cat([part.absmax for _, part in packed])
    state.shape, state.absmax = weight.shape, absmax
    if made.compress_statistics:
        state.offset, state.nested = absmax.mean(), True
        state.absmax, state.state2 = quantize_blockwise(absmax - state.offset, blocksize=SCALES_IN_A_BLOCK)
    made.data = torch.cat([part for part, _ in packed])
    made.quant_state, made.bnb_quantized = state, True
    owner: Any = layer
    owner.quant_state = state
    return made


def _holds(name: str, module: nn.Module) -> bool:
    weight: Any = module._parameters.get("weight")  # pyright: ignore[reportPrivateUsage]
    return type(weight).__name__ == "Params4bit" and weight.quant_type == name


def _state(layer: nn.Module) -> object:
    import copy

    weight: Any = layer.weight
    return copy.copy(weight.quant_state)


def _unpack(weight: Tensor, state: object) -> Tensor:
    from bitsandbytes.functional import dequantize_4bit

    kept: Any = state
    return dequantize_4bit(weight, kept)


def _scales(state: object) -> list[Tensor]:
    kept: Any = state
    found = [kept.absmax, kept.code]
    return [*found, kept.offset, kept.state2.absmax, kept.state2.code] if kept.nested else found


def _put_back(layer: nn.Module, parameter: nn.Parameter, state: object) -> None:
    # PEFT 0.21 marks the old weight as not quantized when it merges.
    stored: Any = parameter
    stored.quant_state, stored.bnb_quantized = state, True
    owner: Any = layer
    owner.quant_state = state
