"""What merging, unmerging and unloading do to a model, measured: answers before and after, and whether the base is whole.

In: an adapter on disk. Out: a frozen report. Nothing is written; the model that is tried lives only here.
"""

from __future__ import annotations

import gc
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fitune.adapters import in_memory
from fitune.adapters.base_snapshot import Restored, changed, copy_layers, digests
from fitune.errors import ModelError
from fitune.evaluation.inference_model import Target, open_base_of, open_target
from fitune.models.hardware import choose_precision, detect

TEXTS = (
    "The birch canoe slid on the smooth planks.",
    "Explain in two sentences why the sky is blue.",
    "Write a short letter to a friend who has moved to another town.",
    "def fibonacci(n):",
)
"""What the model is asked for the comparison: four plain texts as user messages."""


@dataclass(frozen=True)
class Difference:
    """Logits against those before: largest and mean absolute difference, share of positions with the same likeliest token."""

    largest: float
    mean: float
    same_token: float

    def __str__(self) -> str:
        return (
            f"largest logit difference {self.largest:.3g}, mean {self.mean:.3g}, "
            f"the same most likely token at {self.same_token:.1%} of the positions"
        )


@dataclass(frozen=True)
class Proof:
    """A step and what it did.

    merge: `difference` is merged against beside the base. unmerge: `by_arithmetic` is how the base comes back when the
    update is taken out again, `restored` how it does from the layers that were kept. unload: `restored` against a base
    loaded anew, tensor by tensor.
    """

    step: str
    adapter: str
    layers: int
    difference: Difference | None = None
    by_arithmetic: Restored | None = None
    restored: Restored | None = None
    kept_bytes: int = 0

    def lines(self) -> list[str]:
        """For people."""
        found = [f"{self.step}: {self.adapter}, {self.layers} layers"]
        if self.difference is not None:
            found.append(f"merged against unmerged: {self.difference}")
        if self.by_arithmetic is not None:
            found.append(f"unmerged by subtraction: {self.by_arithmetic}")
        if self.restored is not None:
            kept = f" (kept aside meanwhile: {self.kept_bytes / 1e6:,.1f} MB)" if self.kept_bytes else ""
            found.append(f"{self.restored}{kept}")
        return found

    def to_dict(self) -> dict[str, object]:
        """Plain values for ``--json``."""
        return asdict(self)


def prove_merge(adapter: Path, title: str, device: str = "auto", precision: str = "auto") -> Proof:
    """Merge, and compare the logits with those of the adapter beside the base."""
    target = open_target(str(adapter), device=device, precision=precision)
    before = _logits(target)
    merged = in_memory.merge(target.peft_model)
    return Proof(
        step="merge",
        adapter=title,
        layers=merged.layers,
        difference=_difference(before, _logits(target)),
        kept_bytes=merged.kept_bytes,
    )


def prove_unmerge(adapter: Path, title: str, device: str = "auto", precision: str = "auto") -> Proof:
    """Merge and take out again, once by arithmetic and once from the layers that were kept."""
    target = open_target(str(adapter), device=device, precision=precision)
    before, reference = _logits(target), copy_layers(target.model)
    in_memory.merge(target.peft_model, keep=False)
    by_arithmetic = in_memory.unmerge(target.peft_model, reference)
    in_memory.put_back(reference)
    merged = in_memory.merge(target.peft_model)
    restored = in_memory.unmerge(target.peft_model)
    return Proof(
        step="unmerge",
        adapter=title,
        layers=merged.layers,
        difference=_difference(before, _logits(target)),
        by_arithmetic=by_arithmetic,
        restored=restored,
        kept_bytes=merged.kept_bytes,
    )


def prove_unload(adapter: Path, title: str, device: str = "auto", precision: str = "auto") -> Proof:
    """Unload, and compare every tensor with a base that never had an adapter."""
    target = open_target(str(adapter), device=device, precision=precision)
    layers = sum(1 for _ in in_memory.adapted_layers(target.model))
    left = digests(in_memory.unload(target.peft_model)[0])
    del target
    gc.collect()
    hardware = detect(device)
    fresh, _ = open_base_of(adapter, hardware, choose_precision(precision, hardware))
    different = changed(digests(fresh.model), left)
    worst = f"{len(different)} of {len(left)} tensors, {different[0]} first" if different else None
    restored = Restored(not different, None if not different else 0.0, len(left), worst)
    return Proof(step="unload", adapter=title, layers=layers, restored=restored)


def _logits(target: Target) -> list[Tensor]:
    """Logits TV of each text, fp32, on the CPU."""
    found: list[Tensor] = []
    with torch.no_grad():
        for text in TEXTS:
            ids = target.renderer.prompt_ids([{"role": "user", "content": text}])
            ids_BT = torch.tensor([ids], device=target.model.device)
            logits_TV = target.model(input_ids=ids_BT, use_cache=False).logits[0].float().cpu()
            if logits_TV.isnan().any():
                raise ModelError("the model gives logits that are no numbers (NaN), so nothing can be compared")
            found.append(logits_TV)
    return found


def _difference(before: list[Tensor], after: list[Tensor]) -> Difference:
    first, then = torch.cat(before), torch.cat(after)
    gap = (first - then).abs()
    same = (first.argmax(-1) == then.argmax(-1)).float().mean()
    return Difference(gap.max().item(), gap.mean().item(), same.item())
