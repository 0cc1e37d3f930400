"""The largest passes of a run, against trying every step."""

from __future__ import annotations

import pytest

from fitune.data.packing.bins import pack_rows
from fitune.trainers.sampler import epoch_order
from fitune.trainers.worst_case_batch import Batches, largest_micro_batch, largest_pack, largest_pass


@pytest.mark.parametrize(("batch", "micro", "epochs"), [(4, 2, 1), (8, 8, 3), (6, 3, 2)])
def test_the_largest_micro_batch_of_all(tiny, batch, micro, epochs):
    rows = tiny.make_rows(29, seed=batch, longest=30)
    found = largest_micro_batch(rows, Batches(batch, micro, 7, epochs))
    sizes = []
    for epoch in range(epochs):
        order = epoch_order(len(rows), 7, epoch)
        for start in range(0, len(order), batch):
            step = order[start : start + batch]
            parts = [[rows[index] for index in step[at : at + micro]] for at in range(0, len(step), micro)]
            sizes += [
                (len(part) * max(len(row.input_ids) for row in part), sum(r.num_trained for r in part))
                for part in parts
            ]
    here = len(found) * max(len(row.input_ids) for row in found), sum(row.num_trained for row in found)
    assert here == max(sizes)


@pytest.mark.parametrize("mode", ["tree", "rows"])
def test_the_largest_pack_of_all(tiny, mode):
    rows = tiny.make_rows(24, seed=3, longest=40)
    batches = Batches(8, 2, 1, 2.0, mode)
    most = 2 * max(len(row.input_ids) for row in rows)
    nodes = []
    for epoch in (0, 1):
        order = epoch_order(len(rows), 1, epoch)
        for start in range(0, len(order), 8):
            step = [rows[index] for index in order[start : start + 8]]
            nodes += [tree.num_nodes for tree in pack_rows(step, most, mode == "tree")]
    found = largest_pack(rows, batches)
    assert found.num_nodes == max(nodes)
    answer = largest_pass(rows, rows[:4], batches, prompt_tokens=5)
    assert answer.pack_tokens == max(nodes) and answer.prompt_tokens == 5
    assert answer.eval_pack_tokens == max(tree.num_nodes for tree in pack_rows(rows[:4], most, mode == "tree"))
    assert 0 < answer.label_share <= 1


def test_padded_rows_need_no_pack(tiny):
    rows = tiny.make_rows(9)
    answer = largest_pass(rows, [], Batches(4, 2, 0))
    assert answer.pack_tokens is None and answer.longest_tokens == max(len(row.input_ids) for row in rows)
