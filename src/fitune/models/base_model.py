"""The causal LM inside a model that may be wrapped by PEFT."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig, PreTrainedModel


def base_model_of(model: nn.Module) -> PreTrainedModel:
    """The model of transformers that PEFT wraps, adapter layers and all; a model without an adapter itself."""
    unwrap = getattr(model, "get_base_model", None)
    return cast("PreTrainedModel", model if unwrap is None else unwrap())


def attention_of(config: PretrainedConfig) -> str:
    """The attention implementation that a model's config names."""
    return str(config._attn_implementation)  # pyright: ignore[reportPrivateUsage]
