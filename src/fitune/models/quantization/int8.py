"""int8: LLM.int8 (arXiv 2208.07339) by bitsandbytes, a scale for each row, outlier columns multiplied in 16 bits."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, cast

from fitune.models.quantization.quantization import Layer, Quantization

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fitune.models.quantization.quantization import Device

SLICE = 2**24  # weights that a CPU packs at once
OUTLIERS_FROM = 6.0  # BitsAndBytesConfig's default of llm_int8_threshold


def _layers() -> Any:
    """bitsandbytes' classes, without its types, which do not fit what is called here."""
    import bitsandbytes.nn

    return bitsandbytes.nn


def _make_layer(layer: Layer) -> nn.Module:
    return _layer_class()(
        layer.inputs, layer.outputs, layer.bias, has_fp16_weights=False, threshold=OUTLIERS_FROM
    )  # fmt: skip


@cache
def _layer_class() -> Any:
    class Linear8bit(_layers().Linear8bitLt):
        """bitsandbytes 0.50 takes inputs of two and three dimensions alone; DeepSeek's kv_b_proj has four."""

        def forward(self, x: Tensor) -> Tensor:
            product: Tensor = super().forward(x.reshape(-1, x.shape[-1]) if x.ndim > 3 else x)
            return product.reshape(*x.shape[:-1], -1)

    return Linear8bit


def _pack(weight: Tensor, layer: nn.Module, device: Device) -> nn.Parameter:
    bnb = _layers()
    made = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    if str(device) == "cpu" and weight.numel() > SLICE:
        return _packed_in_slices(made, weight)
    return made._quantize(device)  # `to` packs on real devices alone, and the plan packs on meta


def _packed_in_slices(made: Any, weight: Tensor) -> nn.Parameter:
    """As bitsandbytes packs the whole, row by row and so to the last bit. A CPU's packing takes 10 bytes a weight."""
    import torch
    from bitsandbytes.functional import int8_vectorwise_quant

    rows = max(SLICE // weight.shape[1], 1)
    packed = [int8_vectorwise_quant(part.to(torch.float16)) for part in weight.split(rows)]
    made.data = made.CB = torch.cat([part[0] for part in packed])
    made.SCB = torch.cat([part[1] for part in packed])
    return made


def _holds(module: nn.Module) -> bool:
    return type(module._parameters.get("weight")).__name__ == "Int8Params"  # pyright: ignore[reportPrivateUsage]


def _state(layer: nn.Module) -> object:
    owner: Any = layer
    return owner.state.SCB if owner.state.SCB is not None else owner.weight.SCB


def _unpack(weight: Tensor, state: object) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    return int8_vectorwise_dequant(weight, cast("Tensor", state))


def _scales(state: object) -> list[Tensor]:
    return [] if state is None else [cast("Tensor", state)]


def _put_back(layer: nn.Module, parameter: nn.Parameter, state: object) -> None:
    stored: Any = parameter
    owner: Any = layer
    stored.CB, stored.SCB = parameter.data, state
    owner.state.CB = owner.state.SCB = None  # taken from the weight again at the next forward pass


INT8 = Quantization(
    name="int8",
    help="LLM.int8 (arXiv 2208.07339), one scale per row, outlier columns multiplied in 16 bits",
    bits=8,
    block=0,
    rung=(
        "base weights in int8",
        "hardly any: outliers stay in 16 bits (LLM.int8, Dettmers et al. 2022, arXiv 2208.07339)",
    ),
    loader={"load_in_8bit": True, "llm_int8_threshold": OUTLIERS_FROM},
    dora_on_cpu=False,
    make_layer=_make_layer,
    pack=_pack,
    holds=_holds,
    state=_state,
    unpack=_unpack,
    scales=_scales,
    put_back=_put_back,
)
