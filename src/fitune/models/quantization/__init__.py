"""Quantized bases: the registry that settings, loading, the plan, the fit ladder and the documents share.

In: a word of `model.quantization`. Out: its facts, and what packs and unpacks a layer. Importing this imports no torch.
A new quantization is a `Quantization` in a file of its own and a line here (docs/extending.md).
"""

from __future__ import annotations

from collections.abc import Iterable

from fitune.models.quantization.fp4 import FP4
from fitune.models.quantization.int8 import INT8
from fitune.models.quantization.nf4 import NF4
from fitune.models.quantization.quantization import Quantization

QUANTIZATIONS: dict[str, Quantization] = {kind.name: kind for kind in (INT8, NF4, FP4)}


def rungs_below(bits: float) -> list[str]:
    """Quantizations that the fit ladder may take in place of weights of so many bits, the largest first."""
    lower = [kind for kind in QUANTIZATIONS.values() if kind.rung is not None and kind.bits < bits]
    return [kind.name for kind in sorted(lower, key=lambda kind: -kind.bits)]


def either(names: Iterable[str]) -> str:
    """`int8, nf4 or fp4`."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def doubled() -> str:
    """The quantizations whose scales can be quantized too: `nf4 or fp4`."""
    return either(kind.name for kind in QUANTIZATIONS.values() if kind.double_quant)
