"""What a trace replaces in torch and bitsandbytes while it runs, all in one place: each with its reason and its end.

In: what a trace knows of the card. Out: context managers; everything is as it was when they end, after errors too.
Nothing else in fitune sets an attribute of another library's module. Seen with torch 2.15 and bitsandbytes 0.50.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from fitune.planning.scenario import Scenario
from fitune.planning.trace.autocast import MetaAutocast
from fitune.planning.trace.cpu_memory_rules import training_matmul
from fitune.planning.trace.cuda_memory_rules import attention_for
from fitune.planning.trace.recorder import Recorder


@contextmanager
def replaced(owner: object, **made: object) -> Generator[None]:
    """Attributes of ``owner`` are others inside."""
    real = {name: getattr(owner, name) for name in made}
    for name, value in made.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in real.items():
            setattr(owner, name, value)


@contextmanager
def autocast_on_meta(mode: MetaAutocast | None, on_card: bool = True) -> Generator[None]:
    """torch.autocast, is_autocast_enabled and get_autocast_dtype know the meta device.

    Args:
        on_card: the meta device stands for a card. is_autocast_enabled without a device asks for CUDA's, which is off on
            a CPU: there PEFT's quantized layers cast their input themselves.

    torch's own refuse it. To be dropped when torch.autocast("meta") follows CUDA's lists.
    """
    names = ("autocast", "is_autocast_enabled", "get_autocast_dtype")
    real = {name: getattr(torch, name) for name in names}

    def autocast(device_type: str, *args: object, **kwargs: object) -> AbstractContextManager[object]:
        if device_type != "meta":
            return real["autocast"](device_type, *args, **kwargs)
        if mode is None or kwargs.get("enabled", True):
            return nullcontext()
        return mode.suspended()

    def is_autocast_enabled(device_type: str | None = None) -> bool:
        if device_type == "meta" or (device_type is None and on_card):
            return mode is not None and mode.active
        return real["is_autocast_enabled"](device_type or "cuda")

    def get_autocast_dtype(device_type: str) -> torch.dtype:
        return mode.dtype if device_type == "meta" and mode is not None else real["get_autocast_dtype"](device_type)

    with replaced(
        torch, autocast=autocast, is_autocast_enabled=is_autocast_enabled, get_autocast_dtype=get_autocast_dtype
    ):
        yield


@contextmanager
def cuda_functions(
    capability: tuple[int, int], recorder: Recorder, forced: str | None = None, autocast: MetaAutocast | None = None
) -> Generator[None]:
    """Attention, dropout and softmax of torch.nn.functional are CUDA's.

    On meta torch takes the math path of attention and a dropout without a saved mask. A function mode would be shorter,
    but is off while checkpointing recomputes. To be dropped when meta tensors can stand for a CUDA device's kernels.
    """
    functional = torch.nn.functional
    softmax = functional.softmax
    chosen = attention_for(capability, forced)

    def sdpa(*args: object, **kwargs: object) -> torch.Tensor:
        if autocast is not None and autocast.active:  # a python function: autocast's mode does not see it
            args = tuple(autocast.lower(value) for value in args)
            kwargs = {name: autocast.lower(value) for name, value in kwargs.items()}
        with recorder.labelled("attention"):
            return chosen(*args, **kwargs)

    def fused_dropout(
        input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        if p == 0.0 or not training or input.numel() == 0:
            return input
        return torch.native_dropout(input, p, True)[0]

    def fused_softmax(
        input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        # at::softmax: from fp16 to fp32 in one kernel on CUDA (only from fp16)
        if autocast is not None and autocast.active and dtype is None and input.dtype != torch.float64:
            dtype = torch.float32
        if input.dtype == torch.float16 and dtype == torch.float32:
            return torch.ops.aten._softmax(input, dim, True)
        return softmax(input, dim=dim, dtype=dtype)

    with replaced(functional, scaled_dot_product_attention=sdpa, dropout=fused_dropout, softmax=fused_softmax):
        yield


@contextmanager
def cpu_attention(autocast: MetaAutocast | None) -> Generator[None]:
    """SDPA runs the CPU's flash kernel, which meta tensors do not choose by themselves. To be dropped when they do."""
    functional = torch.nn.functional
    original = functional.scaled_dot_product_attention

    def attention(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
    ) -> torch.Tensor:  # fmt: skip
        if autocast is not None and autocast.active:
            query, key, value = autocast.lower(query), autocast.lower(key), autocast.lower(value)
        if dropout_p or query.shape[-1] != value.shape[-1]:  # sdp_utils_cpp.cpp: flash takes neither
            more: dict[str, bool] = {"enable_gqa": True} if enable_gqa else {}
            return original(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        flash: Callable[..., tuple[torch.Tensor, ...]] = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return flash(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]

    with replaced(functional, scaled_dot_product_attention=attention):
        yield


@contextmanager
def cpu_int8_products() -> Generator[None]:
    """bitsandbytes' int8 layers train on meta as on a CPU; by the device they would take the path of a card.

    To be dropped when bitsandbytes chooses it by something else than the name of the device.
    """
    import bitsandbytes

    library: Any = bitsandbytes  # its types do not export matmul
    with replaced(library, matmul=training_matmul(library.matmul)):
        yield


@contextmanager
def own_quantization_maps(scenario: Scenario) -> Generator[None]:
    """bitsandbytes keeps one table of 8-bit values for the process, on the device that first asked for it.

    A trace that asked first would leave one on the meta device, and every later quantization would fail on it; inside,
    the trace has its own. bitsandbytes/functional.py, quantize_blockwise; to be dropped when the table is kept for each
    device.
    """
    if not scenario.quantized:
        yield
        return
    from bitsandbytes import functional

    kept = dict(functional.name2qmap)
    functional.name2qmap.clear()
    try:
        yield
    finally:
        functional.name2qmap.clear()
        functional.name2qmap.update(kept)
