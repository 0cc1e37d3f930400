"""A model's configuration alone: read and judged without a weight, and without importing a model class."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PretrainedConfig
from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from fitune.errors import ModelError
from fitune.models.source import ModelSource
from fitune.models.tokenizer import unreachable

# Families such as BERT have a causal class too, but a checkpoint with one of these heads was trained as another thing.
OTHER_HEADS = ("ForMaskedLM", "ForPreTraining", "Classification", "ForQuestionAnswering", "ForMultipleChoice")


def load_config(source: ModelSource, trust_remote_code: bool = False) -> PretrainedConfig:
    """The model's configuration alone, without a weight.

    Raises:
        ModelError: unreachable, damaged, or not a causal language model.
    """
    options = {"revision": source.revision, "trust_remote_code": trust_remote_code}
    if source.gguf_file:
        options["gguf_file"] = source.gguf_file
    try:
        config = AutoConfig.from_pretrained(source.path, **options)
    except Exception as error:  # transformers raises many kinds here; each means the same to the user
        raise ModelError(unreachable(source, "configuration", error)) from error
    heads = [name for name in getattr(config, "architectures", None) or () if name.endswith(OTHER_HEADS)]
    if heads:
        raise ModelError(f"{source.name} is a {heads[0]}, not a causal language model")
    if not _continues_text(config) and _auto_class(config) is None:
        remote = getattr(config, "auto_map", {}) if trust_remote_code else {}
        if "AutoModelForCausalLM" not in remote:
            raise ModelError(f"{source.name} is a {config.model_type} model, not a causal language model")
    return config


def _continues_text(config: PretrainedConfig) -> bool:
    """Whether transformers' lists of names already say so; model classes take a second to import."""
    own = CONFIG_MAPPING_NAMES.get(config.model_type) == type(config).__name__
    return own and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not config.is_encoder_decoder


def _auto_class(config: PretrainedConfig) -> Any:
    from fitune.models.towers import auto_class

    return auto_class(config)
