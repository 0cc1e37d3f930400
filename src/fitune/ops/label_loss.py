"""The training loss: logits only where there is a label, cross entropy in fp32, summed and divided by a given count.

In: a causal language model and a padded batch. Out: one scalar.
Knows nothing of trainers, files or settings. Tree packing and the memory plan call `selected_loss`, which has no
data-dependent shape when it is given positions instead of a mask (a mask's count of ones is unknown on meta).

B rows, S tokens a row, N trained tokens in the batch, K positions kept in each row, V vocabulary.
"""

from __future__ import annotations

import inspect
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig

from fitune.models.base_model import base_model_of

IGNORED = -100


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


def label_loss(model: nn.Module, batch: dict[str, Tensor], num_items: Tensor | float) -> Tensor:
    """Cross entropy of the trained tokens of ``batch``, summed in fp32, divided by ``num_items``.

    With ``num_items`` the trained tokens of the whole optimizer step, the losses of its micro-batches add up to the
    mean over its tokens, however the rows are dealt out.

    Args:
        model: a causal LM of transformers, or a PEFT model around one.
        batch: input_ids BS, attention_mask BS, labels BS; other entries go to the model as they are.
        num_items: divisor, at least 1.

    Returns:
        A scalar in fp32; zero with a gradient path when the batch has nothing to train.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    keep_BS, targets_N = kept_positions(batch["labels"])
    return selected_loss(model, inputs, keep_BS, targets_N, num_items)


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
