"""Model families that can be written as GGUF: their metadata, and how llama.cpp wants their weights laid out.

In: a transformers config. Out: the `Family`, or the reasons why it cannot be converted.
Names of tensors come from the `gguf` package; what is here is what it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gguf
import torch
from torch import Tensor
from transformers import PretrainedConfig


@dataclass(frozen=True)
class Family:
    """One architecture of llama.cpp.

    Attributes:
        arch: its name in the file.
        metadata: writes the hyperparameters.
        to_gguf: a weight of transformers → the same in llama.cpp's layout; by GGUF name.
        faults: reasons why a config of this family cannot be converted.
    """

    arch: str
    metadata: Callable[[gguf.GGUFWriter, PretrainedConfig], None]
    to_gguf: Callable[[str, Tensor, PretrainedConfig], Tensor]
    faults: Callable[[PretrainedConfig], Iterator[str]]


def family_of(config: PretrainedConfig) -> Family | None:
    """The family of a transformers config, or None."""
    return FAMILIES.get(config.model_type)


def faults(config: PretrainedConfig) -> list[str]:
    """Why this model cannot be written as GGUF; empty when it can."""
    family = family_of(config)
    if family is None:
        return [f"GGUF export knows {', '.join(FAMILIES)}, and this is a {config.model_type} model"]
    return list(family.faults(config))


def head_size(config: PretrainedConfig) -> int:
    """Width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def num_kv_heads(config: PretrainedConfig) -> int:
    """Key/value heads; as many as query heads where the config has no number of its own."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def rope(config: PretrainedConfig) -> dict[str, Any]:
    """The rotary embedding's parameters."""
    return dict(getattr(config, "rope_parameters", None) or {})


def rope_type(config: PretrainedConfig) -> str:
    """default, linear, llama3, …"""
    return str(rope(config).get("rope_type", "default"))


def rope_factors(config: PretrainedConfig) -> Tensor | None:
    """llama3's divisors of the rotary frequencies (head size / 2,), which llama.cpp takes as a tensor.

    Frequencies whose wavelength is longer than the first context are divided by `factor`, short ones by 1, those
    between by a blend of both (Llama 3.1's release, apply_scaling).
    """
    if rope_type(config) != "llama3":
        return None
    values = rope(config)
    width, context = head_size(config), values["original_max_position_embeddings"]
    low, high, factor = values["low_freq_factor"], values["high_freq_factor"], values["factor"]
    exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
    wavelengths = 2 * math.pi * values["rope_theta"] ** exponents
    blend = ((context / wavelengths - low) / (high - low)).clamp(0, 1)
    return 1 / ((1 - blend) / factor + blend)


def context_length(config: PretrainedConfig) -> int:
    """Tokens that every layer attends to: a sliding window ends what llama.cpp can be told truthfully."""
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return min(config.max_position_embeddings, window) if window else config.max_position_embeddings


def _common(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(context_length(config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(num_kv_heads(config))
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(rope(config).get("rope_theta", 10000.0))
    if rope_type(config) == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope(config)["factor"])


def _llama_like(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _common(writer, config)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_size(config))
    writer.add_key_length(head_size(config))
    writer.add_value_length(head_size(config))


def _neox(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    _common(writer, config)
    writer.add_layer_norm_eps(config.layer_norm_eps)
    writer.add_rope_dimension_count(int(head_size(config) * rope(config).get("partial_rotary_factor", 1.0)))
    writer.add_parallel_residual(config.use_parallel_residual)


def _llama_faults(config: PretrainedConfig) -> Iterator[str]:
    yield from _rope_faults(config, ("default", "linear", "llama3"))
    if getattr(config, "hidden_act", "silu") != "silu":
        yield f"llama.cpp computes this family with silu, and the model's activation is {config.hidden_act}"


def _qwen_faults(config: PretrainedConfig) -> Iterator[str]:
    yield from _rope_faults(config, ("default", "linear"))
    if getattr(config, "use_sliding_window", False):
        yield "llama.cpp knows no sliding window for this family, and the config sets use_sliding_window"


def _neox_faults(config: PretrainedConfig) -> Iterator[str]:
    yield from _rope_faults(config, ("default", "linear"))
    if not str(config.hidden_act).startswith("gelu"):
        yield f"llama.cpp computes this family with gelu, and the model's activation is {config.hidden_act}"
    if not getattr(config, "attention_bias", True):
        yield "llama.cpp expects attention biases in this family, and this model has none"


def _rope_faults(config: PretrainedConfig, known: tuple[str, ...]) -> Iterator[str]:
    if rope_type(config) not in known:
        yield f"rotary scaling {rope_type(config)} is not among those that can be written: {', '.join(known)}"


def _heads_of(name: str, config: PretrainedConfig) -> int | None:
    if ".attn_q." in name:
        return config.num_attention_heads
    return num_kv_heads(config) if ".attn_k." in name else None


def _interleave(name: str, weight: Tensor, config: PretrainedConfig) -> Tensor:
    """q and k rows: transformers pairs row i of a head with row i + half, llama.cpp's Llama pairs neighbours."""
    heads = _heads_of(name, config)
    if heads is None:
        return weight
    return weight.reshape(heads, 2, -1, *weight.shape[1:]).transpose(1, 2).reshape(weight.shape)


def _part_qkv(name: str, weight: Tensor, config: PretrainedConfig) -> Tensor:
    """GPT-NeoX keeps q, k and v of a head together; llama.cpp wants all q, then all k, then all v."""
    if ".attn_qkv." not in name:
        return weight
    return weight.reshape(config.num_attention_heads, 3, -1, *weight.shape[1:]).transpose(0, 1).reshape(weight.shape)


def _as_is(name: str, weight: Tensor, config: PretrainedConfig) -> Tensor:
    return weight


LLAMA = Family(arch="llama", metadata=_llama_like, to_gguf=_interleave, faults=_llama_faults)
FAMILIES: dict[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Family(arch="qwen2", metadata=_llama_like, to_gguf=_as_is, faults=_qwen_faults),
    "qwen3": Family(arch="qwen3", metadata=_llama_like, to_gguf=_as_is, faults=_qwen_faults),
    "gpt_neox": Family(arch="gptneox", metadata=_neox, to_gguf=_part_qkv, faults=_neox_faults),
}
