"""Weights quantized as their files are read: one layer, or one stack of experts, is in its own type at a time.

In: what is to be quantized. Out: the quantization config for ``from_pretrained`` and, after it, the model as plain as
`quantize_in_place` leaves one. transformers' own hook for quantizers does the reading: it gives each tensor, the experts of a
layer fused, to an operation that packs it. For bitsandbytes' linear layers alone transformers has such an operation itself.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from fitune.models.mixture.packed_experts import Packing, compute_packed, pack_stack, stacks_to_pack
from fitune.models.quantization.quantize import QuantizationConfig, empty_layer, layers_to_pack, tell_peft

METHOD = "fitune"
MAPS = Path("/proc/self/maps")
# Pages of weight files that a process holds at most while it reads: they are given up each time that so much was packed.
PAGES_BYTES = 256 * 2**20
MADV_DONTNEED = 4  # Linux, madvise(2)


class WhileReading(QuantizationConfigMixin):
    """What is quantized, the type of the products, and where the weights will lie."""

    def __init__(self, quantization: QuantizationConfig, compute: torch.dtype, device: str | int):
        self.quant_method = cast(Any, METHOD)
        self.quantization, self.compute, self.device = quantization, compute, device

    def to_dict(self) -> dict[str, Any]:
        """transformers prints it."""
        return {"quant_method": METHOD, **self.quantization.to_dict()}


# transformers' own annotations of these hooks do not fit what it returns and calls them with.
# pyright: reportIncompatibleMethodOverride=false
class ReadingQuantizer(HfQuantizer):
    """transformers' quantizer for `WhileReading`."""

    def __init__(self, quantization_config: WhileReading, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self.asked: WhileReading = quantization_config
        self.wanted: set[str] = set()
        self.read_bytes = 0

    @property
    def packing(self) -> Packing:
        """For the experts."""
        asked = self.asked.quantization
        return Packing(asked.facts, self.asked.compute, asked.double_quant)

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        asked = self.asked.quantization
        for name in layers_to_pack(model, asked, self.asked.device):
            model.set_submodule(name, empty_layer(model.get_submodule(name), asked, self.asked.compute))
            self.wanted.add(f"{name}.weight")
        self.wanted |= {f"{name}.{own}" for name, _, own in stacks_to_pack(model, asked.facts)}
        return model

    def param_needs_quantization(self, model: PreTrainedModel, param_name: str, **kwargs: Any) -> bool:
        """Whether it is one of them; asked of every tensor."""
        return param_name in self.wanted

    def get_quantize_ops(self) -> ConversionOps:
        """The operation for one tensor."""
        return PackTensor(self)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        compute_packed(model)
        tell_peft(model, self.asked.quantization.facts)
        return model

    def count(self, tensor: Tensor) -> None:
        """A tensor was packed: the pages that were read for it may go."""
        self.read_bytes += tensor.nbytes
        if self.read_bytes >= PAGES_BYTES:
            self.read_bytes = 0
            drop_pages()

    @property
    def is_trainable(self) -> bool:
        """Adapters are."""
        return True

    def is_serializable(self) -> bool:
        """The base is never saved as it is stored here."""
        return False


cast(Any, register_quantization_config(METHOD))(WhileReading)
cast(Any, register_quantizer(METHOD))(ReadingQuantizer)


class PackTensor(ConversionOps):
    """One tensor, in its own type, to what is stored of it."""

    def __init__(self, quantizer: ReadingQuantizer):
        self.quantizer = quantizer

    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str | None = None, model: Any = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """{full name: what goes in its place}."""
        return {name: self._packed(model, name, value) for name, value in input_dict.items()}

    def _packed(self, model: nn.Module, name: str, value: Tensor | list[Tensor]) -> Tensor:
        tensor = value[0] if isinstance(value, list) else value
        place, _, last = name.rpartition(".")
        module: Any = model.get_submodule(place)
        if tensor.ndim == 3:
            made = pack_stack(
                module, last, tensor.to(self.quantizer.asked.compute), self.quantizer.packing, tensor.device
            )
        else:
            weight = tensor.T if module.source_is_transposed else tensor
            made = self.quantizer.packing.kind.pack(
                weight.to(self.quantizer.asked.compute).contiguous(), module, tensor.device
            )
        for filled in (module, *module.children()):
            filled._is_hf_initialized = True  # transformers would fill it with random numbers
        self.quantizer.count(tensor)
        return made


def forget_quantizer(model: PreTrainedModel) -> None:
    """Take away what transformers keeps of the quantizer: the model is one with other layers, and saved as its adapters."""
    marked: Any = model
    for owner, name in ((marked, "hf_quantizer"), (marked, "quantization_method"), (marked, "is_quantized")):
        if name in vars(owner):
            delattr(owner, name)
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if isinstance(module, PreTrainedModel):
            for name in ("quantization_config", "_is_quantized"):
                vars(config).pop(name, None)


def release_files(model: nn.Module) -> None:
    """On a CPU: let go of the mapped files and of the heap that packing left behind.

    What was not packed (embeddings, norms) is a view of the mapped file and keeps what pages of it are there: 203 MiB of
    SmolLM2-135M's 257 were those of packed weights. malloc keeps its holes until it is asked: 240 to 500
    MiB of them there (measured on 2026-11-29, bitsandbytes 0.50).
    """
    mapped = _mapped_files()
    for tensor in [*model.parameters(), *model.buffers()]:
        if any(begin <= tensor.data_ptr() < end for begin, end in mapped):
            tensor.data = tensor.data.clone()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def drop_pages() -> None:
    """Give up the pages of mapped weight files; the system reads one again when it is asked for.

    The mapping itself lasts until transformers has read everything, and would hold the whole model in 16 bits. Nothing is
    written to it: dropping pages of a file loses nothing (madvise(2)).
    """
    mapped = _mapped_files()
    if mapped:
        madvise: Any = ctypes.CDLL(None).madvise
        for begin, end in mapped:
            madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)


def _mapped_files() -> list[tuple[int, int]]:
    """(begin, end) of every mapping of a weight file; none on a system without /proc."""
    if not MAPS.exists():
        return []
    lines = (line.split() for line in MAPS.read_text(errors="replace").splitlines())
    spans = [words[0].split("-") for words in lines if words[-1].endswith((".safetensors", ".bin", ".gguf"))]
    return [(int(begin, 16), int(end, 16)) for begin, end in spans]
