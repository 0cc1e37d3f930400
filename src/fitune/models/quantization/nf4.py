"""nf4: the 4-bit type of QLoRA (arXiv 2305.14314), whose levels are quantiles of a normal distribution."""

from __future__ import annotations

from fitune.models.quantization.four_bit import four_bit

NF4 = four_bit(
    "nf4",
    "NF4 of QLoRA (arXiv 2305.14314), 16 levels, one scale per block of 64 weights",
    rung=(
        "base weights in NF4",
        "small: QLoRA matched 16-bit LoRA on its benchmarks (Dettmers et al. 2023, arXiv 2305.14314)",
    ),
)
