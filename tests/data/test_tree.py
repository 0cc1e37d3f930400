"""Trees of rows: a plain dictionary trie is the reference."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fitune.data.packing.bins import pack_rows
from fitune.data.packing.tree import build_tree


@dataclass(frozen=True)
class Row:
    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    row_number: int = 0


@st.composite
def rows_lists(draw):
    rows = []
    for number in range(draw(st.integers(1, 9))):
        ids = draw(st.lists(st.integers(0, 2), min_size=1, max_size=10))
        trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        rows.append(Row(tuple(ids), tuple(trained), number))
    return rows


@given(rows=rows_lists(), keep_ends=st.booleans())
def test_nodes_are_the_distinct_prefixes_and_entries_their_trained_continuations(rows, keep_ends):
    tree = build_tree(rows, keep_ends=keep_ends)
    prefixes = {
        row.input_ids[:end]
        for row in rows
        for end in range(1, len(row.input_ids) + 1)
        if end == 1 or keep_ends or any(row.trained[end:])
    }
    visible = tree.visible()
    spelt = [tuple(tree.input_ids[np.nonzero(visible[node])[0]]) for node in range(tree.num_nodes)]
    assert len(spelt) == len(prefixes) and set(spelt) == prefixes
    assert [len(prefix) - 1 for prefix in spelt] == tree.positions.tolist()
    expected = Counter(
        (row.input_ids[:index], row.input_ids[index])
        for row in rows
        for index in range(1, len(row.input_ids))
        if row.trained[index]
    )
    entries = zip(tree.target_nodes, tree.target_ids, tree.target_weights, strict=True)
    assert {(spelt[node], token): weight for node, token, weight in entries} == expected
    assert tree.num_targets == expected.total()
    assert tree.row_tokens == sum(len(row.input_ids) for row in rows)


@given(rows=rows_lists())
def test_each_node_is_owned_by_one_path(rows):
    tree = build_tree(rows)
    owners = [node for path, owned in zip(tree.paths, tree.owned, strict=True) for node in path[-owned:]]
    assert sorted(owners) == list(range(tree.num_nodes))


@given(rows=rows_lists(), max_tokens=st.integers(5, 40), share=st.booleans())
def test_packs_hold_each_row_once_and_keep_their_limit(rows, max_tokens, share):
    packs = pack_rows(rows, max_tokens, share)
    assert Counter(number for tree in packs for number in tree.row_numbers) == Counter(range(len(rows)))
    for tree in packs:
        assert tree.num_nodes <= max_tokens or len(tree.row_numbers) == 1
    assert sum(tree.num_targets for tree in packs) == sum(sum(row.trained[1:]) for row in rows)


def test_without_sharing_equal_rows_stay_apart():
    rows = [Row((1, 2, 3), (False, True, True), number) for number in range(2)]
    assert build_tree(rows, share=False).num_nodes == 4
    assert build_tree(rows).num_nodes == 2
    assert build_tree(rows).target_weights.tolist() == [2, 2]


def test_what_follows_the_last_trained_token_is_not_computed():
    rows = [Row((1, 2, 3, 4, 5), (False, False, True, False, False), number) for number in range(2)]
    tree = build_tree(rows)
    assert tree.input_ids.tolist() == [1, 2] and tree.target_ids.tolist() == [3]
    assert build_tree(rows, keep_ends=True).input_ids.tolist() == [1, 2, 3, 4, 5]
    assert [tree.num_nodes for tree in pack_rows(rows, 4, share=False)] == [4]


def test_a_pack_that_starts_in_the_middle_of_a_prefix_pays_for_it():
    """Limit 8: the second pack must compute the six shared tokens again, and still fits."""
    rows = [Row((1, 2, 3, 4, 5, 6, 7 + number, 0), (True,) * 8, number) for number in range(4)]
    packs = pack_rows(rows, 8)
    assert [tree.num_nodes for tree in packs] == [8, 8]


def test_an_empty_row_is_refused():
    with pytest.raises(ValueError, match="one of them empty"):
        build_tree([Row((), ())])
    assert pack_rows([], 8) == []
