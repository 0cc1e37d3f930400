"""Which queries are laid beside which keys."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from fitune.ops.grouped_attention import grouped_attention
from fitune.ops.tree_attention_layout import CALL_SCORES, group_by_size, make_layout


def test_rows_of_similar_size_go_together_and_unlike_ones_apart():
    assert group_by_size([(40, 40), (41, 41), (900, 900)]) == [(0, 2), (2, 3)]


def test_whole_rows_and_continuations_stay_apart():
    assert group_by_size([(40, 40), (40, 41)]) == [(0, 1), (1, 2)]


@pytest.mark.parametrize("seed", range(3))
def test_the_cut_is_the_cheapest_of_all(seed):
    """Against every way to cut eight units into runs."""
    generator = np.random.default_rng(seed)
    sizes = sorted((int(size), int(size)) for size in generator.integers(1, 300, 8))

    def cost(runs):
        return sum(
            (b - a) * max(s[0] for s in sizes[a:b]) * max(s[1] for s in sizes[a:b]) + CALL_SCORES for a, b in runs
        )

    every = []
    for bits in range(2**7):
        cuts = [0, *[place + 1 for place in range(7) if bits >> place & 1], 8]
        every.append(list(pairwise(cuts)))
    assert cost(group_by_size(sizes)) == min(map(cost, every))


def test_no_score_outside_a_rows_own_path_is_computed():
    """Eight rows of 44 after a prefix of 24: 8·44·68 + 24·24 scores at most, not 376²."""
    prefix, paths, owned = np.arange(24), [np.arange(24)], [24]
    for number in range(8):
        own = np.arange(24 + 44 * number, 68 + 44 * number)
        paths.append(np.concatenate([prefix, own]))
        owned.append(44)
    positions = np.concatenate([prefix, np.tile(np.arange(24, 68), 8)])
    layout = make_layout(paths, owned, positions, np.zeros(376))
    scores = sum(group.num_units * group.num_queries * group.num_keys for group in layout.groups)
    assert scores == 24 * 24 + 8 * 44 * 68
    assert layout.shares


def test_a_lone_row_equals_causal_attention_of_torch():
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 6, 300, 8), torch.randn(1, 2, 300, 8), torch.randn(1, 2, 300, 8)
    layout = make_layout([np.arange(300)], [300], np.arange(300), np.full(300, 300))
    ours = grouped_attention(query, key, value, layout, scale=8**-0.5)
    plain = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.allclose(ours, plain.transpose(1, 2), atol=1e-6)
