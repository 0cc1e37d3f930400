"""Write a model as one GGUF file, tensor by tensor, so that no second copy of the model is in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from fitune.console import log
from fitune.errors import ModelError
from fitune.exporting.gguf.families import Family, family_of, faults, rope_factors
from fitune.exporting.gguf.gguf_types import GGUF_TYPES
from fitune.exporting.gguf.vocabulary import Vocabulary

F16_LARGEST = 65504.0


@dataclass(frozen=True)
class Planned:
    """One tensor of the file: its name there and in transformers, shape, stored type."""

    name: str
    source: str
    shape: tuple[int, ...]
    type: Type

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of the bytes for a packed type, of the values otherwise."""
        if self.type in (Type.F32, Type.F16):
            return self.shape
        return gguf.quant_shape_to_byte_shape(self.shape, self.type)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tensor in the file."""
        block, size = gguf.GGML_QUANT_SIZES[self.type]
        return int(np.prod(self.shape)) // block * size


def plan_tensors(shapes: dict[str, tuple[int, ...]], config: PretrainedConfig, kind: str) -> list[Planned]:
    """Every tensor of the file.

    Args:
        shapes: transformers' names and shapes; a head that shares the embedding's weight left out.
        kind: a key of GGUF_TYPES.

    Raises:
        ModelError: a family that cannot be converted, or a weight that GGUF has no name for.
    """
    family = require_family(config)
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    planned: list[Planned] = []
    for source, shape in shapes.items():
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if name is None:
            raise ModelError(f"GGUF has no name for the weight {source} {shape} of this {config.model_type} model")
        planned.append(Planned(name, source, shape, _type_of(name, shape, kind)))
    if (factors := rope_factors(config)) is not None:
        planned.append(Planned("rope_freqs.weight", "", tuple(factors.shape), Type.F32))
    return planned


def require_family(config: PretrainedConfig) -> Family:
    """The family, or ModelError with every reason why there is none."""
    if found := faults(config):
        raise ModelError(f"this model cannot be written as GGUF: {'; '.join(found)}. `--to merged` writes any model")
    family = family_of(config)
    assert family is not None
    return family


def _type_of(name: str, shape: tuple[int, ...], kind: str) -> Type:
    """Norms and biases stay fp32, as llama.cpp wants them; a row that is no multiple of the block cannot be packed."""
    if len(shape) == 1:
        return Type.F32
    stored = GGUF_TYPES[kind]
    chosen = Type[stored.ends if name in ("token_embd.weight", "output.weight") else stored.layers]
    block, _ = gguf.GGML_QUANT_SIZES[chosen]
    return Type.F16 if shape[-1] % block else chosen


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """The model's weights by name, a tied head left out."""
    state = model.state_dict()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is not None and head.weight is embedding.weight:
        tied = next(name for name, module in model.named_modules() if module is head)
        state.pop(f"{tied}.weight", None)
    return state


def write_gguf(
    path: Path,
    weights: dict[str, Tensor],
    config: PretrainedConfig,
    vocabulary: Vocabulary,
    kind: str,
    name: str,
    base: str,
) -> int:
    """Write the file; returns its size in bytes.

    Args:
        weights: transformers' names → tensors of any float type; converted one at a time.
        name: of the model, in the file. base: what it was tuned from.

    Raises:
        ModelError: cannot be converted, or a value that F16 cannot hold.
        OSError: the disk is full.
    """
    family = require_family(config)
    planned = plan_tensors({key: tuple(value.shape) for key, value in weights.items()}, config, kind)
    stored_as = GGUF_TYPES[kind]
    writer = gguf.GGUFWriter(path, family.arch)
    try:
        writer.add_type("model")
        writer.add_name(_name_for_transformers(name))
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, base)
        writer.add_file_type(gguf.LlamaFileType[stored_as.file_type])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        family.metadata(writer, config)
        vocabulary.write(writer)
        for tensor in planned:
            stored = np.float32 if tensor.type == Type.F32 else np.float16 if tensor.type == Type.F16 else np.uint8
            writer.add_tensor_info(tensor.name, tensor.stored_shape, np.dtype(stored), tensor.num_bytes, tensor.type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for values in _packed(planned, weights, config, family):
            writer.write_tensor_data(values)
    finally:
        writer.close()
    unpacked = sum(tensor.type == Type.F16 for tensor in planned) if stored_as.packed else 0
    if unpacked:
        block, _ = gguf.GGML_QUANT_SIZES[Type[stored_as.layers]]
        log(f"{unpacked} tensors are stored in F16: their rows are no multiple of the block of {block} values")
    return path.stat().st_size


def _name_for_transformers(name: str) -> str:
    """transformers 5.24 takes a llama file of the very name "mistral" for another architecture, and then fails."""
    return "Mistral" if name == "mistral" else name


def _packed(
    planned: list[Planned], weights: dict[str, Tensor], config: PretrainedConfig, family: Family
) -> Iterator[np.ndarray]:
    """Each tensor in its stored type."""
    for tensor in planned:
        if not tensor.source:
            factors = rope_factors(config)
            assert factors is not None
            yield factors.numpy()
            continue
        weight = family.to_gguf(tensor.name, weights[tensor.source].detach(), config)
        values = weight.to("cpu", torch.float32).contiguous().numpy()
        if tensor.type == Type.F16 and np.abs(values).max(initial=0) > F16_LARGEST:
            raise ModelError(
                f"{tensor.source} holds {np.abs(values).max():.4g}, more than F16's {F16_LARGEST:g}; use --type bf16"
            )
        yield gguf.quantize(values, tensor.type)
