"""Attention over a tree pack, offered to transformers through its own attention interface.

In: query, key, value of one layer and the pack's `TreeLayout`, which the caller hands to the model's forward as
``tree_layout=`` and transformers passes on. Out: the attention's result, as if each row had been alone.
Knows nothing of rows, losses or training.

`use_tree_attention(model)` names this implementation in the model's config (a documented call of transformers); calls
without a layout, such as evaluation and generation, go on to the implementation that the model had before.

On a GPU with Triton this is FlexAttention; elsewhere tree_scores.py, group by group.

H heads, KV key/value heads, D head size, N nodes.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_torch_flex_attn_available

from fitune.errors import ModelError
from fitune.models.base_model import attention_of
from fitune.ops.grouped_attention import grouped_attention
from fitune.ops.tree_attention_layout import TreeLayout

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask
    from transformers import PreTrainedModel

PREFIX = "fitune_tree_"
# What attention may be asked for besides these would change the result if it were ignored.
HARMLESS = {"use_cache", "output_attentions", "is_causal", "position_ids", "num_items_in_batch", "cache_position"}


def use_tree_attention(model: PreTrainedModel) -> str:
    """Let ``model`` take tree packs.

    Args:
        model: a causal LM of transformers (without PEFT around it).

    Returns:
        The implementation it had before, which `set_attn_implementation` puts back.

    Raises:
        ModelError: its attention does not go through transformers' interface, or is one that this does not stand for.
    """
    before = attention_of(model.config)
    if before.startswith(PREFIX):
        return before.removeprefix(PREFIX)
    if before not in ("sdpa", "eager"):
        raise ModelError(f"tree packing stands in for sdpa or eager attention; this model uses {before}")
    name = PREFIX + before
    AttentionInterface.register(name, partial(tree_attention_forward, before))
    AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[before])
    model.set_attn_implementation(name)
    if attention_of(model.config) != name:
        raise ModelError(f"{type(model).__name__} has an attention of its own, not transformers' interface")
    return before


def no_mask(device: torch.device | str) -> Tensor:
    """An attention mask that transformers passes on untouched (it has four dimensions), and that is not used."""
    return torch.empty((1, 1, 0, 0), dtype=torch.bool, device=device)


def tree_attention_forward(
    before: str,
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | BlockMask | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    tree_layout: TreeLayout | None = None,
    **kwargs: object,
) -> tuple[Tensor, Tensor | None]:
    """Attention in transformers' calling convention.

    Args:
        before: the implementation that calls without a layout go to.
        query: 1×H×N×D; key, value: 1×KV×N×D.

    Returns:
        1×N×H×D, and None for the scores.

    Raises:
        ModelError: the model asks for something that the packed form would leave out.
    """
    if tree_layout is None:
        if attention_mask is not None and getattr(attention_mask, "shape", (1,))[-1] == 0:
            raise ModelError(f"{type(module).__name__} does not pass the pack's layout on to its attention")
        plain = _implementation(before, module)
        return plain(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    softcap = cast("float | None", kwargs.pop("softcap", None))
    window = cast("int | None", kwargs.pop("sliding_window", None))
    asked = [name for name, wanted in kwargs.items() if wanted is not None and name not in HARMLESS]
    if dropout:
        raise ModelError(f"attention dropout {dropout} is not available in packs; set it to 0, or data.packing: off")
    if asked:
        raise ModelError(f"{type(module).__name__} asks its attention for {', '.join(asked)}, which packs do not know")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if query.device.type == "cuda" and flex_available():
        return _flex(module, query, key, value, tree_layout, scale, softcap, window), None
    return grouped_attention(query, key, value, tree_layout, scale, softcap, window), None


def _implementation(name: str, module: torch.nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if name != "eager":
        return ALL_ATTENTION_FUNCTIONS[name]
    for kind in type(module).__mro__:
        if eager := getattr(sys.modules[kind.__module__], "eager_attention_forward", None):
            return eager
    raise ModelError(f"{type(module).__name__} has no eager attention in its module")


# ---- on a GPU


def flex_available() -> bool:
    """Whether FlexAttention can run compiled here (it needs Triton)."""
    return find_spec("triton") is not None and is_torch_flex_attn_available()


def _flex(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    layout: TreeLayout,
    scale: float,
    softcap: float | None,
    window: int | None,
) -> Tensor:
    """FlexAttention through transformers' own function, with a block mask made once for each pack and window."""
    made = layout.block_masks.get(window)
    if made is None:
        made = layout.block_masks[window] = layout.block_mask(window)
    length = made.shape[-1]
    padded = (F.pad(part, (0, 0, 0, length - part.shape[2])) for part in (query, key, value))
    output, _ = ALL_ATTENTION_FUNCTIONS["flex_attention"](module, *padded, made, scaling=scale, softcap=softcap)
    return output[:, : query.shape[2]]
