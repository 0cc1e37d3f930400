"""What a quantization is: its facts, and how a layer is made, packed and unpacked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Device = torch.device | str | int

SCALE_BITS = 32
SCALES_IN_A_BLOCK = 256  # of scales that are quantized themselves: 8 bits each, and one scale in fp32 for so many


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A linear layer that is to be stored in few bits.

    Attributes:
        compute: type of its products.
        double_quant: quantize its scales too.
    """

    inputs: int
    outputs: int
    bias: bool
    compute: torch.dtype
    double_quant: bool = False


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """One way of storing the base's linear layers. What needs torch is imported inside its functions.

    A layer's *state* is what unpacks its weight, whatever the quantization keeps for that.

    Attributes:
        name: as in `model.quantization`.
        help: what it is, for the help and the documents.
        bits: of a stored weight, scales not counted.
        block: weights that share a scale; 0 is a row.
        double_quant: its scales can be quantized too (`model.double_quant`).
        rung: what the fit ladder calls it, and what it costs in quality; None leaves it out of the ladder.
        loader: transformers' `BitsAndBytesConfig` for it; empty where transformers does not load it, and each layer is
            packed when the model is there.
        trains_on_cpu: a CPU computes it, forward and backward.
        dora_on_cpu: likewise under DoRA.
        cpu_inputs: a CPU computes layers right whose inputs are a multiple of this.
        merges: PEFT can merge an adapter into its layers in memory.
        make_layer: the empty layer, on the device of the context.
        pack: (weight, (out, in) in its own type; its layer; device) → the parameter that stores it there. The layer is
            given what else it needs.
        holds: whether a module is a layer of this quantization.
        state: a layer's state; later changes of the layer leave it as it is.
        unpack: (stored weight, state) → the weight that it stands for, (out, in).
        scales: the tensors of a state.
        put_back: (layer, parameter, state): the parameter that was the layer's weight is so again; both are given what
            else they had.
    """

    name: str
    help: str
    bits: int
    block: int
    double_quant: bool = False
    rung: tuple[str, str] | None = None
    loader: Mapping[str, bool | float | str] = field(default_factory=dict[str, bool | float | str])
    trains_on_cpu: bool = True
    dora_on_cpu: bool = True
    cpu_inputs: int = 1
    merges: bool = True
    make_layer: Callable[[Layer], nn.Module]
    pack: Callable[[Tensor, nn.Module, Device], nn.Parameter]
    holds: Callable[[nn.Module], bool]
    state: Callable[[nn.Module], object]
    unpack: Callable[[Tensor, object], Tensor]
    scales: Callable[[object], list[Tensor]]
    put_back: Callable[[nn.Module, nn.Parameter, object], None]

    def bits_per_weight(self, inputs: int, double_quant: bool = False) -> float:
        """Bits that a weight takes, its share of the scales among them.

        Args:
            inputs: weights in a row.
        """
        scale = 8 + SCALE_BITS / SCALES_IN_A_BLOCK if double_quant and self.double_quant else SCALE_BITS
        return self.bits + scale / (self.block or inputs)
