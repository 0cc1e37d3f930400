"""Why a model cannot be packed, as far as its config says. Torch is not imported: the plan asks before there is a model.

In: the values of a text config. Out: a sentence, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

# Of the names that transformers allows in a config's ``layer_types`` (configuration_utils.ALLOWED_ATTN_LAYER_TYPES), those
# that mix tokens outside attention: linear attention and state spaces, short convolutions, and both beside attention.
RECURRENT_LAYERS = frozenset({"linear_attention", "conv", "hybrid", "hybrid_sliding"})
# What models call the dropout of attention weights in their configs.
ATTENTION_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
# Model types whose attention adds a learnt column to the scores (transformers passes it as s_aux).
WITH_SINKS = frozenset({"gpt_oss", "mimo_v2_flash"})


def refused_by_config(value_of: Callable[[str], object]) -> str | None:
    """Why a model cannot be packed, as far as its text config says; None when it says nothing against it.

    A pack keeps its rows apart in attention alone: layers that mix tokens otherwise carry their state into the next row.

    Args:
        value_of: name in the text config → its value, None where there is none.
    """
    if value_of("model_type") in WITH_SINKS:
        return "its attention has sinks, a learnt column beside the scores, which packs do not know"
    if value_of("attn_temperature_tuning"):
        return "its attention's temperature follows from a token's place in the whole pass (attn_temperature_tuning)"
    for kind in cast("Sequence[str] | None", value_of("layer_types")) or ():
        if kind in RECURRENT_LAYERS:
            return carries_a_state(kind)
        if kind == "chunked_attention":
            return "its chunked attention sees a part of a row alone, counted from the beginning of the pass"
    for name in ATTENTION_DROPOUTS:
        if value_of(name):
            return f"the model drops attention weights ({name} is {value_of(name)})"
    return None


def carries_a_state(layer: str) -> str:
    """The sentence for a layer that mixes tokens outside attention."""
    return f"its {layer} layers carry a state from token to token, which would carry over from one row into the next"
