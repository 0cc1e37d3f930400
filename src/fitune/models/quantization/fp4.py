"""fp4: 4-bit floating point."""

from __future__ import annotations

from fitune.models.quantization.four_bit import four_bit

FP4 = four_bit("fp4", "4-bit floating point, one scale per block of 64 weights")
