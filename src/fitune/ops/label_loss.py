"""The training loss: logits only where there is a label, cross entropy in fp32, summed and divided by a given count.

Where a batch has more logits than a GPU's chunk of a pack (gpt-oss: 2,048 tokens × 201,088 words are 1.5 GiB three times
over), they are made chunk by chunk like a pack's.

In: a causal language model and a padded batch. Out: one scalar.
Knows nothing of trainers, files or settings. Tree packing and the memory plan call `selected_loss`, which has no
data-dependent shape when it is given positions instead of a mask (a mask's count of ones is unknown on meta).

B rows, S tokens a row, N trained tokens in the batch, K positions kept in each row, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig

from fitune.models.base_model import base_model_of
from fitune.ops.chunked_cross_entropy import GPU_CHUNK_LOGITS, Entries, Recompute, chunked_cross_entropy, transformed
from fitune.ops.packed_loss import split_model

IGNORED = -100
# fp32 logits of 256 MiB, as many as a GPU's chunk has. What is smaller is computed as it always was, to the last bit.
MOST_WHOLE_LOGITS = GPU_CHUNK_LOGITS
# Tokens on which logits are compared, and what 16 bits may round of the largest.
FEW, SAME = 16, 1e-2


def kept_positions(labels_BS: Tensor) -> tuple[Tensor, Tensor]:
    """Which positions must give logits, and what each of them has to predict.

    Position i is kept when the token after it is trained; the first token of a row is nobody's target.

    Args:
        labels_BS: token ids, −100 where the token is not trained.

    Returns:
        keep_BS (bool; the last column is False) and targets_N, in the order in which ``hidden[keep]`` lists them.
    """
    keep_BS = torch.zeros_like(labels_BS, dtype=torch.bool)
    keep_BS[:, :-1] = labels_BS[:, 1:] != IGNORED
    return keep_BS, labels_BS[:, 1:][keep_BS[:, :-1]]


def count_trained(labels_BS: Tensor) -> int:
    """Trained tokens of a batch: labels other than −100, the first token of each row left out."""
    return int((labels_BS[:, 1:] != IGNORED).sum())


@dataclass(frozen=True, eq=False)
class Chunking:
    """How many logits are made at once where a batch has very many.

    Attributes:
        autocast: the context of the body and the head, which are then called by themselves.
        logits: as in `chunked_cross_entropy`.
        recompute: likewise.
    """

    autocast: Callable[[], AbstractContextManager[object]]
    logits: int | None = None
    recompute: Recompute = checkpoint


def label_loss(
    model: nn.Module, batch: dict[str, Tensor], num_items: Tensor | float, chunking: Chunking | None = None
) -> Tensor:
    """Cross entropy of the trained tokens of ``batch``, summed in fp32, divided by ``num_items``.

    With ``num_items`` the trained tokens of the whole optimizer step, the losses of its micro-batches add up to the
    mean over its tokens, however the rows are dealt out.

    Args:
        model: a causal LM of transformers, or a PEFT model around one.
        batch: input_ids BS, attention_mask BS, labels BS; other entries go to the model as they are.
        num_items: divisor, at least 1.
        chunking: lets more than `MOST_WHOLE_LOGITS` be made chunk by chunk, where the model's logits are no more than its
            head over its body's states.

    Returns:
        A scalar in fp32; zero with a gradient path when the batch has nothing to train.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    keep_BS, targets_N = kept_positions(batch["labels"])
    if chunking is not None and _too_many(model, len(targets_N)) and _head_is_all(model, inputs, chunking):
        return _chunked_loss(model, inputs, keep_BS, targets_N, chunking) / num_items
    return selected_loss(model, inputs, keep_BS, targets_N, num_items)


def _too_many(model: nn.Module, positions: int) -> bool:
    config = base_model_of(model).config.get_text_config()
    return positions * (getattr(config, "vocab_size", None) or 0) > MOST_WHOLE_LOGITS


def _chunked_loss(
    model: nn.Module, inputs: dict[str, Tensor], keep_BS: Tensor, targets_N: Tensor, chunking: Chunking
) -> Tensor:
    """The summed cross entropy, its logits never all there."""
    body, head = split_model(model)
    with chunking.autocast():
        states_NH = body(**inputs, use_cache=False).last_hidden_state[keep_BS]
        ones = torch.ones(len(targets_N), device=states_NH.device)
        # On meta, which has no values, the chunks are cut by places that do.
        device = "cpu" if states_NH.is_meta else states_NH.device
        places = torch.arange(len(targets_N), device=device)
        targets = places if states_NH.is_meta else targets_N.to(device)
        entries = Entries(places, targets, ones, ones)
        return chunked_cross_entropy(
            states_NH, head, entries, chunk_logits=chunking.logits, recompute=chunking.recompute
        )


_plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _head_is_all(model: nn.Module, inputs: dict[str, Tensor], chunking: Chunking) -> bool:
    """Whether the model's logits are its head over its body's states, asked once of a model on the beginning of a row."""
    inner = base_model_of(model)
    if type(model).__name__ == "DistributedDataParallel" or inputs["input_ids"].is_meta:
        return inputs["input_ids"].is_meta
    if inner not in _plain:
        _plain[inner] = _same_logits(inner, {name: value[:1, :FEW] for name, value in inputs.items()}, chunking)
    return _plain[inner]


def _same_logits(inner: nn.Module, few: dict[str, Tensor], chunking: Chunking) -> bool:
    body, head = split_model(inner)
    trains = inner.training
    inner.eval()
    try:
        with torch.no_grad(), chunking.autocast():
            whole = inner(**few, use_cache=False).logits.float()
            apart = transformed(head.module(body(**few, use_cache=False).last_hidden_state), head)
    finally:
        inner.train(trains)
    return bool((whole - apart).abs().max() <= SAME * whole.abs().max())


def selected_loss(
    model: nn.Module, inputs: dict[str, Tensor], keep: Tensor, targets_N: Tensor, num_items: Tensor | float
) -> Tensor:
    """`label_loss` for positions that the caller has already picked.

    Args:
        keep: a bool mask BS with N ones, or integer positions BK with B·K = N (fixed shapes, for meta tensors).
        targets_N: the token each kept position predicts, −100 where a position of BK is only filling.
    """
    if takes_position_mask(model):
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits
    else:
        logits = model(**inputs, use_cache=False).logits
        logits = logits[keep] if keep.dtype == torch.bool else torch.take_along_dim(logits, keep[..., None], dim=1)
    logits_NV = logits.reshape(-1, logits.shape[-1]).float()
    return F.cross_entropy(logits_NV, targets_N.to(logits_NV.device), ignore_index=IGNORED, reduction="sum") / num_items


def balance_loss_left_out(config: PretrainedConfig) -> str | None:
    """What to say of a router's balance loss that the model's own forward would add; None where it adds none."""
    text = config.get_text_config()
    named = ((name, getattr(text, name, None)) for name in ("router_aux_loss_coef", "aux_loss_coef", "aux_loss_alpha"))
    weight = next(((name, value) for name, value in named if value), None)
    if not getattr(text, "output_router_logits", False) or weight is None:
        return None
    return (
        f"the config asks for the router's balance loss (output_router_logits, {weight[0]} {weight[1]:g}), which is not "
        "added: it is taken over all tokens of a forward pass, so it would depend on which rows share one; the loss is "
        "the cross entropy of the trained tokens alone"
    )


def takes_position_mask(model: nn.Module) -> bool:
    """Whether the model's ``logits_to_keep`` takes a bool mask BS (transformers 5.24; older ones take a count or 1-D
    indices, some models take none)."""
    inner = base_model_of(model)
    return _forward_takes_mask(type(inner))


@lru_cache(maxsize=64)
def _forward_takes_mask(kind: type[nn.Module]) -> bool:
    # Documented nowhere as a version, so the model's own module is asked whether it selects through the one helper
    # of transformers that knows masks.
    try:
        from transformers.modeling_utils import slice_logits_to_keep
    except ImportError:
        return False
    module = inspect.getmodule(kind)
    has_argument = "logits_to_keep" in inspect.signature(kind.forward).parameters
    return has_argument and getattr(module, "slice_logits_to_keep", None) is slice_logits_to_keep
