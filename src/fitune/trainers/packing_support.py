"""Whether rows can be packed for this model: tried on a few real rows against the plain forward, before step one.

In: the model, training rows, what the user asked for. Out: a frozen `Packing`, with what there is to say about it.
Knows nothing of settings or trainers.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn
from transformers import PretrainedConfig

from fitune.data.packing.bins import Mode
from fitune.data.packing.config_refusal import carries_a_state, refused_by_config
from fitune.data.packing.tree import Row, build_tree, common_prefix
from fitune.errors import ModelError
from fitune.models.base_model import attention_of, base_model_of
from fitune.models.length_rules import length_rule
from fitune.models.towers import text_model
from fitune.ops.packed_loss import pack_loss, to_pack
from fitune.ops.tree_attention import use_tree_attention

# Difference of a row's mean loss that rounding explains, as a share of the loss (bf16 keeps 8 bits, so 2⁻⁸ = 0.4 % an
# operation: 0.5 % was seen on SmolLM2 with short rows); a wrong mask or position gives several times as much.
FP32_TOLERANCE = 1e-4
LOW_PRECISION_TOLERANCE = 0.012
ROWS_TRIED = 4
TOKENS_TRIED = 2_048
# Losses of a row may move by so much when other rows' tokens change: rounding, where the number of rows an expert or an
# int8 outlier column sees moves with them. Elsewhere they do not move by a bit.
FP32_LEAK = 1e-6
LOW_PRECISION_LEAK = 3e-3


@dataclass(frozen=True)
class Packing:
    """How the rows of a step are laid out."""

    mode: Mode
    max_tokens: int
    """Computed tokens of a pack at most: what a padded micro-batch of the longest rows would have."""
    notes: tuple[str, ...] = ()


def choose_packing(
    model: nn.Module,
    rows: Sequence[Row],
    wanted: Literal["auto", "tree", "rows", "off"],
    micro_batch_rows: int,
    autocast: AbstractContextManager[object] | None = None,
    longest: int | None = None,
    noise: bool = False,
) -> Packing:
    """The best layout that this model computes exactly. Leaves the model ready for it.

    Args:
        model: the model that will be trained, PEFT and all; its weights and random numbers are left as they are.
        micro_batch_rows: rows of a padded forward pass, from which the size of a pack follows.
        autocast: the context in which training computes.
        longest: tokens of the longest row that will be packed, held-out ones included; None takes ``rows``.
        noise: the embeddings get noise row by row.
    """
    max_tokens = micro_batch_rows * max((len(row.input_ids) for row in rows), default=1)
    if wanted == "off":
        return Packing("off", max_tokens)
    longest = longest or max((len(row.input_ids) for row in rows), default=1)
    refusal = _refusal(model) or _refused_by_length(base_model_of(model).config, longest)
    if refusal:
        return Packing("off", max_tokens, (f"rows are padded, not packed: {refusal}",))
    modes, notes = _candidates(model, wanted)
    if noise and "tree" in modes:
        modes.remove("tree")
        notes.append("prefixes are not shared because of NEFTune's noise: rows would share its draws")
    for mode in modes:
        fault = self_check(model, rows, share=mode == "tree", autocast=autocast)
        if fault is None:
            return Packing(mode, max_tokens, tuple(notes))
        notes.append(f"packing ({mode}) is not possible with this model: {fault}")
    return Packing("off", max_tokens, (*notes, "rows are padded"))


def _refusal(model: nn.Module) -> str | None:
    """Why packing is not even tried."""
    inner = base_model_of(model)
    config = inner.config.get_text_config()
    if refusal := refused_by_config(lambda name: getattr(config, name, None)):
        return refusal
    # Older than layer_types: a causal convolution over the sequence stands beside the state.
    for module in text_model(inner).modules():
        if any(isinstance(part, nn.Conv1d) for part in module.children()):
            return carries_a_state(type(module).__name__)
    return None


def _refused_by_length(config: PretrainedConfig, longest: int) -> str | None:
    """Why rows of up to ``longest`` tokens cannot be packed: the longest would decide how the others are computed."""
    rule = length_rule(config)
    if rule is not None and longest > rule.limit:
        return (
            f"its rotary embedding ({rule.kind}) computes rows of more than {rule.limit:,} tokens otherwise, and the "
            f"longest has {longest:,}; rows of either side are computed apart"
        )
    return None


def _candidates(model: nn.Module, wanted: str) -> tuple[list[Mode], list[str]]:
    if wanted == "rows":
        return ["rows"], []
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    if not drops:
        return ["tree", "rows"], []
    if wanted == "tree":
        return ["tree", "rows"], ["with dropout, rows that share a prefix share its dropout too"]
    return ["rows"], ["prefixes are not shared because of dropout: rows would share its mask (data.packing: tree)"]


def self_check(
    model: nn.Module, rows: Sequence[Row], share: bool, autocast: AbstractContextManager[object] | None = None
) -> str | None:
    """Loss of a few real rows in one pack: against the plain forward of each alone, and while the others change.

    A loss that depends on another row's tokens is a leak, however small: weights near their random start hide in
    rounding what they would do once trained.

    Returns:
        What is wrong, or None. With a fault the model has its own attention again.
    """
    inner = base_model_of(model)
    sample = _sample(rows, getattr(inner.config.get_text_config(), "sliding_window", None))
    if not sample:
        return "no row has a trained token"
    before = attention_of(inner.config)
    low = any(value.dtype in (torch.bfloat16, torch.float16) for value in model.parameters())
    context = autocast or nullcontext()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    fault = None
    try:
        with torch.no_grad(), context:
            low = low or torch.is_autocast_enabled(device.type)
            plain = [_plain_loss(model, row, device) for row in sample]
            use_tree_attention(inner)
            packed = [_packed_loss(model, sample, which, share, device) for which in range(len(sample))]
            beside = [
                _packed_loss(model, _others_changed(sample, which), which, share, device)
                for which in range(len(sample))
            ]
        tolerance = LOW_PRECISION_TOLERANCE if low else FP32_TOLERANCE
        worst = max(range(len(sample)), key=lambda which: abs(plain[which] - packed[which]))
        # Written so that a loss that is not a number is a fault too.
        if not abs(plain[worst] - packed[worst]) <= tolerance * max(1.0, plain[worst]):
            fault = f"loss {packed[worst]:.4f} instead of {plain[worst]:.4f} on row {sample[worst].row_number}"
        leak = LOW_PRECISION_LEAK if low else FP32_LEAK
        moved = max(range(len(sample)), key=lambda which: abs(packed[which] - beside[which]))
        if fault is None and not abs(packed[moved] - beside[moved]) <= leak * max(1.0, packed[moved]):
            fault = (
                f"the loss of row {sample[moved].row_number} moves from {packed[moved]:.6f} to {beside[moved]:.6f} when other "
                "rows of its pack have other tokens"
            )
    except ModelError as error:
        fault = str(error)
    except (TypeError, AttributeError, RuntimeError, ValueError, KeyError, IndexError) as error:
        fault = f"its code fails on a pack ({type(error).__name__}: {' '.join(str(error).split())})"
    finally:
        model.train(was_training)
    if fault is not None and attention_of(inner.config) != before:
        inner.set_attn_implementation(before)
    return fault


def _sample(rows: Sequence[Row], window: int | None = None) -> list[Row]:
    """A few rows with something to train: the two that share most, one longer than the window, the shortest others."""
    trained = [row for row in rows if any(row.trained[1:])][:512]
    ordered = sorted(trained, key=lambda row: tuple(row.input_ids))
    shared = [common_prefix(a.input_ids, b.input_ids) for a, b in pairwise(ordered)]
    chosen: list[Row] = []
    if shared:
        first = max(range(len(shared)), key=shared.__getitem__)
        chosen = [ordered[first], ordered[first + 1]]
    others = sorted((row for row in trained if row not in chosen), key=lambda row: len(row.input_ids))
    over = [row for row in others if window and window < len(row.input_ids) <= TOKENS_TRIED // 2][:1]
    chosen += [*over, *(row for row in others if row not in over)]
    kept, tokens = [], 0
    for row in chosen[:ROWS_TRIED]:
        tokens += len(row.input_ids)
        if kept and tokens > TOKENS_TRIED:
            break
        kept.append(row)
    return kept


def _plain_loss(model: nn.Module, row: Row, device: torch.device) -> float:
    """Mean loss of a row's trained tokens by the model's own forward, alone and with full logits."""
    ids_BT = torch.tensor([row.input_ids], device=device)
    logits_TV = model(input_ids=ids_BT, use_cache=False).logits[0, :-1].float()
    losses_T = nn.functional.cross_entropy(logits_TV, ids_BT[0, 1:], reduction="none")
    return float(losses_T[torch.tensor(row.trained[1:], device=device)].mean())


@dataclass(frozen=True)
class _Untrained:
    """A row that is there, and predicts nothing."""

    input_ids: Sequence[int]
    trained: Sequence[bool]
    row_number: int


def _packed_loss(model: nn.Module, sample: Sequence[Row], which: int, share: bool, device: torch.device) -> float:
    """Mean loss of one row's trained tokens, in a pack with the others, which are computed to their ends."""
    rows = [
        row if number == which else _Untrained(row.input_ids, (False,) * len(row.input_ids), row.row_number)
        for number, row in enumerate(sample)
    ]
    tree = build_tree(rows, share, keep_ends=True)
    return float(pack_loss(model, to_pack(tree, device), sum(sample[which].trained[1:])))


def _others_changed(sample: Sequence[Row], which: int) -> list[Row]:
    """The rows with other tokens in the tails of all but one.

    A tail begins behind the first token that a row has for itself, so the tree keeps its shape and its order, and with
    them every product its size.
    """
    ids = sorted({token for row in sample for token in row.input_ids})
    following = dict(zip(ids, [*ids[1:], ids[0]], strict=True))
    changed: list[Row] = []
    for number, row in enumerate(sample):
        if number == which:
            changed.append(row)
            continue
        shared = max(common_prefix(row.input_ids, other.input_ids) for other in sample if other is not row)
        tail = [following[token] for token in row.input_ids[shared + 1 :]]
        changed.append(_Untrained([*row.input_ids[: shared + 1], *tail], row.trained, row.row_number))
    return changed
