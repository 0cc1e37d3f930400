"""The least a step can take: the matrix products that it cannot do without, timed at its own sizes.

Counted: each linear layer forward and the gradient of its input, for the tokens that must be computed (shared prefixes
once); LoRA's products, forward and backward; the head forward and backward where a token is trained; attention's four
(forward two) products per computed token and seen key, as if no mask wasted any. Not counted: everything else
(norms, softmax, activations, casts, optimizer, Python). The first layer's query, key and value need no input gradient.
"""

from __future__ import annotations

import time
from typing import Any

import torch

from fitune.data.packing.bins import pack_rows


def floor_seconds(rows: list[Any], config: Any, rank: int = 16, repeats: int = 5) -> float:
    """Seconds of the matrix products of one step over ``rows``, in bf16 on this machine, now."""
    trees = pack_rows(rows, 10**9)
    tokens = sum(tree.num_nodes for tree in trees)
    predicting = len({(n, int(node)) for n, tree in enumerate(trees) for node in tree.target_nodes})
    pairs = sum(int((tree.positions + 1).sum()) for tree in trees)
    hidden, inner, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    size = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
    q, kv = config.num_attention_heads * size, config.num_key_value_heads * size
    shapes = [(hidden, q), (hidden, kv), (hidden, kv), (q, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]
    total = 0.0
    for index, (a, b) in enumerate(shapes):
        forward, backward = product(tokens, a, b, repeats), product(tokens, b, a, repeats)
        total += forward * layers + backward * (layers - 1 if index < 3 else layers)
        small = product(tokens, a, rank, repeats) + product(tokens, rank, b, repeats)
        total += 3 * small * layers  # forward, input gradient, weight gradient: the same multiplications
    total += product(predicting, hidden, config.vocab_size, 2) + product(predicting, config.vocab_size, hidden, 2)
    # Attention: 2 products forward and 4 backward (5 with the scores made again), at the speed of a large product.
    speed = 2 * tokens * hidden * inner / product(tokens, hidden, inner, repeats)
    return total + 6 * 2 * pairs * q * layers / speed


def product(rows: int, inner: int, columns: int, repeats: int) -> float:
    """Best time of one bf16 product."""
    a, b = torch.randn(rows, inner).bfloat16(), torch.randn(inner, columns).bfloat16()
    best = float("inf")
    for _ in range(repeats + 1):
        start = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - start)
    return best
