"""The causal LM inside a model that may be wrapped by PEFT."""

from __future__ import annotations

from typing import Any


def base_model_of(model: Any) -> Any:
    """The model of transformers that PEFT wraps, adapter layers and all; a model without an adapter itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
