"""Several adapters, weighed, become a new one, by PEFT's `add_weighted_adapter`.

In: a `PeftModel` with the adapters in memory, weights, a combination. Out: one more adapter in it.
Knows nothing of files.

cat              ranks are added, the result is exactly Σ w·ΔW
linear           one rank for all; A and B are added apart, so products across adapters come in: an approximation
svd              the best adapter of a rank to Σ w·ΔW
ties             small values dropped, signs voted on, then added (TIES, arXiv 2306.01708)
dare_linear      values dropped at random, the rest enlarged, then added (DARE, arXiv 2311.03099)
dare_ties        DARE's dropping, TIES' vote
magnitude_prune  small values dropped, then added
…_svd            the same on ΔW itself instead of A and B, brought back to a rank
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.utils import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor
from torch.nn import functional

from fitune.adapters.in_memory import BASE, active, config_of, merged, names, tuner
from fitune.errors import ModelError, did_you_mean
from fitune.models.mixture.experts import experts_of_a, experts_of_b, saved_a, saved_b

EQUAL_RANKS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
KINDS = ("cat", "svd", *EQUAL_RANKS, "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd")
DENSITY = 0.5
"""Share of the values that stay, where it is not given."""


@dataclass(frozen=True)
class Combined:
    """The new adapter: its name, what it was made of, its rank."""

    name: str
    parts: tuple[tuple[str, float], ...]
    kind: str
    rank: int
    density: float | None

    def __str__(self) -> str:
        parts = " + ".join(f"{weight:g}·{name}" for name, weight in self.parts)
        dense = "" if self.density is None else f", {self.density:.0%} of the values kept"
        return f"{self.name} = {parts} ({self.kind}{dense}), rank {self.rank}"


def combine(
    model: PeftModel,
    parts: Sequence[tuple[str, float]],
    new: str,
    kind: str = "cat",
    rank: int | None = None,
    density: float | None = None,
) -> Combined:
    """Make a new adapter out of others; who answers stays as it is.

    Args:
        parts: (adapter, weight); weights may be negative, and one of weight 0 takes no part (it would vote in ties).
        rank: of the result, for svd and …_svd; None takes the largest of the parts.
        density: share of the values that stay, for ties, dare and magnitude_prune; None takes half.

    Raises:
        ModelError: an unknown adapter or combination, ranks that it cannot bring together, an option that it does not
            know, or adapters that hold what cannot be added.
    """
    _check(model, [name for name, _ in parts], new, kind, rank, density)
    if not (parts := [part for part in parts if part[1]]):
        raise ModelError("every weight is 0, which leaves the base unchanged; give at least one of them another weight")
    chosen = [name for name, _ in parts]
    was_active = active(model)
    full = [name for name in chosen if _modules_in_full(model, name)]
    # PEFT takes the new adapter's options from the first one.
    ordered = sorted(parts, key=lambda part: part[0] not in full)
    options: dict[str, Any] = {"combination_type": kind}
    if _prunes(kind):
        options["density"] = density or DENSITY
    if kind.endswith("svd"):
        options |= {"svd_rank": rank, "svd_full_matrices": False}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.filterwarnings("ignore", message="The density 1.0 is greater than or equal to 1")  # asked for
        with _without_experts(model, chosen):
            tuner(model).add_weighted_adapter(
                [name for name, _ in ordered], [weight for _, weight in ordered], new, **options
            )
        if kind == "cat":
            _unrounded(model, ordered, new)
        _fill_rank(model, new)
        _add_experts(model, ordered, new, kind, options.get("density"))
        _plain_scale(model, new)
        _add_full_parts(model, parts, new)
    model.requires_grad_(False)
    _activate(model, was_active)
    return Combined(
        name=new, parts=tuple(parts), kind=kind, rank=config_of(model, new).r, density=options.get("density")
    )


def _check(model: PeftModel, chosen: list[str], new: str, kind: str, rank: int | None, density: float | None) -> None:
    for name in chosen:
        if name not in model.peft_config:
            known = names(model)
            raise ModelError(f'there is no adapter "{name}"{did_you_mean(name, known)}; there are: {", ".join(known)}')
    if len(set(chosen)) < 2:
        raise ModelError("a combination needs at least two different adapters")
    if new in names(model) or new == BASE or "." in new or not new.strip():
        raise ModelError(f'"{new}" cannot be an adapter\'s name: it is taken, empty, or holds a dot; choose another')
    if merged(model):
        raise ModelError(f"{', '.join(merged(model))} is merged into the base; unmerge it first")
    if kind not in KINDS:
        raise ModelError(f'there is no combination "{kind}"{did_you_mean(kind, KINDS)}; there are: {", ".join(KINDS)}')
    if rank is not None and not kind.endswith("svd"):
        raise ModelError(f"{kind} decides the rank by itself; --rank goes with svd and the …_svd combinations")
    if kind.endswith("_svd") and (over := [name for name in chosen if _over_experts(model, name)]):
        raise ModelError(
            f"{over[0]} lies over experts, which {kind} does not know; use {kind.removesuffix('_svd')}, cat or svd"
        )
    if density is not None and not _prunes(kind):
        raise ModelError(f"{kind} keeps every value; --density goes with ties, dare and magnitude_prune")
    if density is not None and not 0 < density <= 1:
        raise ModelError(f"density is {density:g}; use a share above 0, at most 1")
    ranks = {name: config_of(model, name).r for name in chosen}
    if kind in EQUAL_RANKS and len(set(ranks.values())) > 1:
        listed = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
        other = "cat or svd" if kind == "linear" else f"{kind}_svd" if f"{kind}_svd" in KINDS else "svd"
        raise ModelError(f"{kind} adds A to A and B to B, so ranks must be equal, and {listed}; use {other}")
    for name in chosen:
        config = config_of(model, name)
        if config.use_dora:
            raise ModelError(f"{name} is a DoRA adapter, whose magnitudes cannot be added; merge it instead")
        if config.bias != "none":
            raise ModelError(f"{name} trains biases, which are the base's own and cannot be weighed")
    if len(full := [name for name in chosen if _modules_in_full(model, name)]) > 1:
        raise ModelError(
            f"{' and '.join(full)} both train modules in full ({', '.join(_modules_in_full(model, full[0]))}), which "
            "PEFT does not combine"
        )


def _over_experts(model: PeftModel, name: str) -> bool:
    """Whether an adapter lies over fused parameters."""
    config: Any = model.peft_config[name]
    return bool(config.target_parameters)


def _prunes(kind: str) -> bool:
    return any(word in kind for word in ("ties", "dare", "magnitude"))


def _modules_in_full(model: PeftModel, name: str) -> list[str]:
    """Modules that an adapter trains in full (norms, a head), by name."""
    wrappers = ((at, module) for at, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper))
    return [at.split(".")[-1] for at, module in wrappers if name in module.modules_to_save]


def _unrounded(model: PeftModel, parts: Sequence[tuple[str, float]], new: str) -> None:
    """PEFT 0.21 writes a concatenation into the type of the base; here it is in fp32, as the parts are."""
    for module in model.modules():
        if not isinstance(module, LoraLayer) or isinstance(module, ParamWrapper) or new not in module.lora_A:
            continue
        layer: Any = module
        held = [(name, weight * layer.scaling[name]) for name, weight in parts if name in layer.lora_A]
        a = torch.cat([factor * layer.lora_A[name].weight.float() for name, factor in held])
        b = torch.cat([layer.lora_B[name].weight.float() for name, _ in held], dim=1)
        layer.lora_A[new].weight.data, layer.lora_B[new].weight.data = a, b


def _fill_rank(model: PeftModel, new: str) -> None:
    """Zeros up to the rank that the result's file promises, without which it does not open again.

    A concatenation has fewer directions where a part leaves the layer alone. A decomposition by PEFT 0.21 has no more
    than the layer's own rank.
    """
    for module in model.modules():
        if not isinstance(module, LoraLayer) or new not in module.lora_A:
            continue
        layer: Any = module
        a, b = layer.lora_A[new].weight, layer.lora_B[new].weight
        if missing := layer.r[new] - len(a):
            a.data, b.data = torch.nn.functional.pad(a, (0, 0, 0, missing)), torch.nn.functional.pad(b, (0, missing))


@contextmanager
def _without_experts(model: PeftModel, chosen: Sequence[str]) -> Generator[None, None, None]:
    """PEFT 0.21 refuses to combine adapters over fused parameters; within it takes these for adapters without."""
    configs: list[Any] = [model.peft_config[name] for name in chosen]
    held = [config.target_parameters for config in configs]
    for config in configs:
        config.target_parameters = None
    try:
        yield
    finally:
        for config, names in zip(configs, held, strict=True):
            config.target_parameters = names


def _add_experts(
    model: PeftModel, parts: Sequence[tuple[str, float]], new: str, kind: str, density: float | None
) -> None:
    """The new adapter over the experts, each of them combined by itself (cat, svd), or all at once where A is added to A
    and B to B, as PEFT does with a linear layer."""
    configs: Any = model.peft_config
    held_in = [name for name, _ in parts if configs[name].target_parameters]
    if not held_in:
        return
    made, inner = configs[new], tuner(model)
    made.target_parameters = configs[held_in[0]].target_parameters
    for module in model.modules():
        if not isinstance(module, ParamWrapper):
            continue
        layer: Any = module
        layer.update_layer(new, made.r, lora_alpha=made.r, config=made)
        held = [(name, weight) for name, weight in parts if name in layer.lora_A]
        if kind in ("cat", "svd"):
            a, b = _experts_added(layer, held, made.r, kind == "svd")
        else:
            names, weights = [name for name, _ in held], [weight for _, weight in held]
            together = inner._generalized_task_arithmetic_weighted_adapter  # pyright: ignore[reportPrivateUsage]
            a, b = together(kind, names, weights, layer, density, "total")
        layer.lora_A[new].weight.data, layer.lora_B[new].weight.data = a.float(), b.float()


def _experts_added(layer: Any, held: Sequence[tuple[str, float]], rank: int, best: bool) -> tuple[Tensor, Tensor]:
    """A and B of Σ w·ΔW for each expert: ranks side by side with zeros behind them, or the best approximation of a rank."""
    all_a: list[Tensor] = []
    all_b: list[Tensor] = []
    for name, weight in held:
        all_a.append(weight * layer.scaling[name] * experts_of_a(layer.lora_A[name].weight.float(), layer.r[name]))
        all_b.append(experts_of_b(layer.lora_B[name].weight.float(), layer.r[name]))
    a, b = torch.cat(all_a, 1), torch.cat(all_b, 2)
    if best:
        left, sigma, right = torch.linalg.svd(b @ a, full_matrices=False)
        root = sigma[:, :rank].sqrt()
        a, b = root[:, :, None] * right[:, :rank], left[:, :, :rank] * root[:, None, :]
    missing = rank - a.shape[1]
    return saved_a(functional.pad(a, (0, 0, 0, missing))), saved_b(functional.pad(b, (0, missing)))


def _plain_scale(model: PeftModel, new: str) -> None:
    """PEFT 0.21 makes the result with alpha = rank, which is a factor of 1 only where it is alpha / r.

    A first part with rank-stabilised scaling would leave √r on the result.
    """
    config = config_of(model, new)
    config.use_rslora, config.lora_alpha = False, config.r
    for module in model.modules():
        if isinstance(module, LoraLayer) and new in module.scaling:
            module.scaling[new] = 1.0


def _add_full_parts(model: PeftModel, parts: Sequence[tuple[str, float]], new: str) -> None:
    """Trained token rows and modules in full: what the base has, plus each part's weighed difference from it.

    PEFT leaves these as the base has them.
    """
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper) and new in module.modules_to_save:
            original = dict(module.original_module.named_parameters())
            for at, value in module.modules_to_save[new].named_parameters():
                start = original[at].float()
                moved = [
                    weight * (dict(module.modules_to_save[name].named_parameters())[at].float() - start)
                    for name, weight in parts
                    if name in module.modules_to_save
                ]
                value.data = start + sum(moved)
        elif isinstance(module, AuxiliaryTrainingWrapper) and hasattr(module, "token_adapter"):
            rows: Any = module.token_adapter
            if new in rows.trainable_tokens_delta:
                start = rows.trainable_tokens_original[new].float()
                held = [(name, weight) for name, weight in parts if name in rows.trainable_tokens_delta]
                moved = [weight * (rows.trainable_tokens_delta[name].float() - start) for name, weight in held]
                rows.trainable_tokens_delta[new].data = start + sum(moved)


def _activate(model: PeftModel, wanted: tuple[str, ...]) -> None:
    inner = tuner(model)
    if wanted:
        inner.set_adapter(list(wanted), inference_mode=True)
    else:
        inner.disable_adapter_layers()
