"""int8: LLM.int8 (arXiv 2208.07339) by bitsandbytes, a scale for each row, outlier columns multiplied in 16 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fitune.models.quantization.quantization import Layer, Quantization

if TYPE_CHECKING:
    from torch import Tensor

OUTLIERS_FROM = 6.0  # BitsAndBytesConfig's default of llm_int8_threshold


def _layers() -> Any:
    """bitsandbytes' classes, without its types, which do not fit what is called here."""
    import bitsandbytes.nn

    return bitsandbytes.nn


def _make_layer(layer: Layer) -> Any:
    bnb = _layers()
    return bnb.Linear8bitLt(
        layer.inputs, layer.outputs, layer.bias, has_fp16_weights=False, threshold=OUTLIERS_FROM
    )  # fmt: skip


def _pack(weight: Tensor, layer: Any, device: Any) -> Any:
    bnb = _layers()
    made = bnb.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return made._quantize(device)  # `to` packs on real devices alone, and the plan packs on meta


def _holds(module: Any) -> bool:
    return type(module._parameters.get("weight")).__name__ == "Int8Params"


def _state(layer: Any) -> Any:
    return layer.state.SCB if layer.state.SCB is not None else layer.weight.SCB


def _unpack(weight: Tensor, state: Any) -> Tensor:
    from bitsandbytes.functional import int8_vectorwise_dequant

    return int8_vectorwise_dequant(weight, state)


def _scales(state: Any) -> list[Tensor]:
    return [] if state is None else [state]


def _put_back(layer: Any, parameter: Any, state: Any) -> None:
    parameter.CB, parameter.SCB = parameter.data, state
    layer.state.CB = layer.state.SCB = None  # taken from the weight again at the next forward pass


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
