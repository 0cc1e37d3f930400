"""The loss of a pack: one forward pass through the model's body, then the head where there is something to predict.

In: a model whose attention takes tree packs (ops/tree_attention.py) and a `Tree`. Out: one scalar, equal to the
loss of the tree's rows computed one by one.
Knows nothing of trainers or settings.

N nodes, M of them with something to predict, E entries, H hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fitune.data.packing.tree import Tree
from fitune.models.base_model import base_model_of
from fitune.models.towers import text_model
from fitune.ops.chunked_cross_entropy import Entries, Head, Recompute, chunked_cross_entropy
from fitune.ops.tree_attention import no_mask
from fitune.ops.tree_attention_layout import TreeLayout, make_layout


@dataclass(frozen=True, eq=False)
class Pack:
    """A tree as tensors on the model's device."""

    input_ids: Tensor
    """1×N token ids."""
    position_ids: Tensor
    """1×N depths."""
    layout: TreeLayout
    predicting: Tensor
    """M nodes that predict something, ascending."""
    entries: Entries


def to_pack(tree: Tree, device: torch.device | str) -> Pack:
    """The tensors of ``tree``."""
    nodes = torch.from_numpy(tree.target_nodes).to(device)
    predicting, rows = torch.unique_consecutive(nodes, return_inverse=True)
    weights = torch.from_numpy(tree.target_weights).to(device, torch.float32)
    row_weights = torch.zeros(len(predicting), device=device).index_add_(0, rows, weights)
    layout = replace(make_layout(tree.paths, tree.owned, tree.positions, tree.ends, device), read=predicting)
    return Pack(
        input_ids=torch.from_numpy(tree.input_ids).to(device)[None],
        position_ids=layout.positions[None],
        layout=layout,
        predicting=predicting,
        entries=Entries(rows, torch.from_numpy(tree.target_ids).to(device), weights, row_weights),
    )


def pack_loss(
    model: nn.Module,
    pack: Pack,
    num_items: Tensor | float,
    label_smoothing: float = 0.0,
    chunk_logits: int | None = None,
    recompute: Recompute = checkpoint,
) -> Tensor:
    """Summed cross entropy of the pack's trained tokens, each row's counted, divided by ``num_items``; fp32.

    Args:
        model: a causal LM of transformers after `use_tree_attention`, or a PEFT model around one.
        num_items: trained tokens of the whole optimizer step.
        chunk_logits, recompute: as in `chunked_cross_entropy`.
    """
    body, head = split_model(model)
    states = predicting_states(body, pack)
    return chunked_cross_entropy(states, head, pack.entries, label_smoothing, chunk_logits, recompute) / num_items


def predicting_states(body: nn.Module, pack: Pack) -> Tensor:
    """M×H hidden states that something is predicted from."""
    output = body(
        input_ids=pack.input_ids,
        position_ids=pack.position_ids,
        attention_mask=no_mask(pack.input_ids.device),
        use_cache=False,
        tree_layout=pack.layout,
    )
    states = output.last_hidden_state[0]
    # A model that left the others out (`TreeLayout.read`) has chosen already.
    return states if len(states) == len(pack.predicting) else states.index_select(0, pack.predicting)


def split_model(model: nn.Module) -> tuple[nn.Module, Head]:
    """Body and head of a causal LM, with what its config says of the logits.

    Models that do something else between body and logits are found out by `self_check`, not here.
    """
    inner = base_model_of(model)
    config = inner.config.get_text_config()
    scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
    scale = scale / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
    head = Head(cast(nn.Module, inner.get_output_embeddings()), scale, getattr(config, "final_logit_softcapping", None))
    return text_model(inner), head
