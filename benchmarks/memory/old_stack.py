"""What a trace needs in the environment of late 2024 (stack2024.txt), where fitune itself would not run.

Production code knows today's stack alone; `trace_rows.py` calls `adapt` first, which puts these in place of the functions
of `fitune.planning.trace` that meet the stack. Plain loops are traced there, so nothing of fitune's own loss is needed.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any

import torch


def adapt() -> None:
    """Nothing with today's transformers; else the older calls."""
    transformers = importlib.import_module("transformers")
    if int(transformers.__version__.split(".")[0]) >= 5:
        return
    modeling = importlib.import_module("transformers.modeling_utils")
    initialization = ModuleType("transformers.initialization")
    initialization.no_init_weights = modeling.no_init_weights  # type: ignore[attr-defined]
    sys.modules["transformers.initialization"] = initialization
    _older_dtype_name(transformers)
    _older_int8()
    from fitune.planning.trace import dry_run

    dry_run.lora_attach = _lora_attach
    dry_run._made = _made_of(dry_run._made)  # pyright: ignore[reportPrivateUsage]


def _older_dtype_name(transformers: Any) -> None:
    """``dtype`` was called ``torch_dtype``."""
    auto = transformers.AutoModelForCausalLM
    newer = auto.from_config.__func__

    def from_config(cls: Any, config: Any, **options: Any) -> Any:
        if "dtype" in options:
            options["torch_dtype"] = options.pop("dtype")
        return newer(cls, config, **options)

    auto.from_config = classmethod(from_config)


def _lora_attach(model: Any, scenario: Any) -> Any:
    """PEFT of that time, which lifts what is trained to fp32 by itself."""
    from peft import LoraConfig, get_peft_model

    made = LoraConfig(
        r=scenario.rank, lora_alpha=2 * scenario.rank, lora_dropout=scenario.lora_dropout, bias=scenario.bias,
        target_modules=scenario.targets if isinstance(scenario.targets, str) else list(scenario.targets),
        modules_to_save=list(scenario.modules_to_save) or None, use_dora=scenario.dora, task_type="CAUSAL_LM",
    )  # fmt: skip
    return get_peft_model(model, made, autocast_adapter_dtype=scenario.trained_dtype == "fp32")


def _made_of(newer: Any) -> Any:
    """Int8Params.cuda step by step, where `Int8Params._quantize` is not there yet."""
    import bitsandbytes as bnb

    def made(parameter: Any, module: Any, name: str, device: str, dtype: torch.dtype) -> Any:
        if name != "weight" or type(parameter).__name__ != "Int8Params" or hasattr(bnb.nn.Int8Params, "_quantize"):
            return newer(parameter, module, name, device, dtype)
        values = torch.empty(parameter.shape, dtype=dtype, device=device)
        found = bnb.nn.Int8Params(values, requires_grad=False, has_fp16_weights=False)
        found.CB, found.SCB, _ = bnb.functional.int8_vectorwise_quant(values.half())
        found.data = found.CB
        return found

    return made


def _older_int8() -> None:
    """bitsandbytes before 0.46 calls its library with pointers, which meta tensors do not have."""
    from bitsandbytes import functional as F

    if hasattr(torch.ops.bitsandbytes, "int8_vectorwise_quant"):
        return

    def quantize(A: Any, threshold: float = 0.0) -> Any:
        out, rows = torch.empty_like(A, dtype=torch.int8), A.new_empty(A.numel() // A.shape[-1], dtype=torch.float32)
        if threshold:
            outliers = A.abs() >= threshold
            del outliers
        return out, rows, None

    def product(A: Any, B: Any, out: Any = None, dtype: Any = torch.int32) -> Any:
        return A.new_empty((*A.shape[:-1], B.shape[0]), dtype=dtype)

    def dequantize(A: Any, row_stats: Any, col_stats: Any, out: Any = None, bias: Any = None) -> Any:
        return torch.empty_like(A, dtype=torch.float16)

    state = importlib.import_module("bitsandbytes.autograd._functions").MatmulLtState
    if not hasattr(state, "memory_efficient_backward"):
        state.memory_efficient_backward = False  # peft 0.13 reads what bitsandbytes 0.45 has dropped
    F.int8_vectorwise_quant, F.int8_linear_matmul, F.int8_mm_dequant = quantize, product, dequantize
