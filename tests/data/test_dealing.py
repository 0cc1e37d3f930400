"""Rows of a step dealt to ranks: each row once, and parts that cost alike."""

from __future__ import annotations

import pytest
import training_fixtures as tiny

from fitune.data.packing.bins import fresh_tokens
from fitune.data.packing.dealing import deal, deal_rows
from fitune.data.packing.tree import needed_tokens
from fitune.data.token_rows import TokenRow


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
@pytest.mark.parametrize("mode", ["tree", "rows"])
@pytest.mark.parametrize("count", [0, 1, 2, 7, 16])
def test_every_row_goes_to_one_rank(parts, mode, count):
    dealt = deal_rows(tiny.make_rows(count), parts, mode)
    assert len(dealt) == parts
    assert sorted(place for part in dealt for place in part) == list(range(count))
    assert all(part == sorted(part) for part in dealt)


def test_parts_cost_alike():
    costs = [9, 7, 6, 5, 4, 3, 2, 2]
    held = [sum(costs[place] for place in part) for part in deal(costs, 3)]
    assert max(held) - min(held) <= 1 and sum(held) == sum(costs)


def test_rows_that_share_a_prefix_stay_together():
    """Two families of four rows; each row brings one token of its own, which nothing is predicted from."""
    rows = [
        TokenRow((family, *range(10, 30), 40 + number, 60), (*[False] * 22, True), number)
        for number in range(4)
        for family in (1, 2)
    ]
    dealt = deal_rows(rows, 2, "tree")
    assert sorted({rows[place].input_ids[0] for place in part} for part in dealt) == [{1}, {2}]
    for part in dealt:
        heads = sorted(needed_tokens(rows[place]) for place in part)
        assert sum(fresh_tokens(heads)) == 21 + 4
