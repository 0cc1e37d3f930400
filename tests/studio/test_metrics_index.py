"""metrics.jsonl read while it grows: nothing missed, half-written lines left out, a shortened file read anew."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studio_runs import train_row

from fitune.studio.reading import metrics_index
from fitune.studio.reading.metrics_index import MetricsIndex, last_row, sampled_rows
from fitune.studio.reading.series import CAPACITY, Series

LOSS = ("train", "loss")


def text_of(*steps: int) -> str:
    return "".join(json.dumps(train_row(step)) + "\n" for step in steps)


def whole(index: MetricsIndex) -> MetricsIndex:
    for _ in range(10_000):
        if index.advance():
            return index
    raise AssertionError("never ends")


def test_a_growing_file_is_read_line_by_line(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    index = MetricsIndex(path)
    assert index.advance() and index.lines == 0
    path.write_text(text_of(1, 2))
    half = json.dumps(train_row(3))
    with path.open("a") as file:
        file.write(half[:40])
    assert whole(index).lines == 2
    with path.open("a") as file:
        file.write(half[40:] + "\n" + text_of(4))
    assert whole(index).lines == 4
    line = index.line(LOSS, "")
    assert line.xs == [1, 2, 3, 4] and line.ys == [pytest.approx(3 - step / 100) for step in (1, 2, 3, 4)]
    assert index.latest["train"]["step"] == 4


def test_lines_that_are_no_rows_are_counted_and_left_out(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    bad = [
        '{"step": 2, "kind"',
        "[]",
        '{"step": "3", "kind": "train"}',
        '{"kind": "train"}',
        "\x00\xff",
        "[" * 5000,
        '{"step": 1e999, "kind": "train"}',
    ]
    path.write_text(text_of(1) + "\n".join(bad) + "\n" + text_of(9))
    index = whole(MetricsIndex(path))
    assert index.damaged == len(bad) and index.line(LOSS, "").xs == [1, 9]


def test_values_that_cannot_be_drawn_leave_a_gap(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        train_row(1),
        train_row(2) | {"loss": None},
        train_row(3) | {"loss": float("nan")},
        train_row(4) | {"loss": 10**400},
        train_row(5),
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert whole(MetricsIndex(path)).line(LOSS, "").xs == [1, 5]


@pytest.mark.parametrize("replaced", [True, False])
def test_a_resumed_run_drops_rows_and_the_index_follows(tmp_path: Path, replaced: bool):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text_of(*range(1, 11)))
    index = whole(MetricsIndex(path))
    draft = tmp_path / "draft" if replaced else path
    draft.write_text(text_of(*range(1, 6)))
    draft.replace(path)
    assert whole(index).line(LOSS, "").xs == [1, 2, 3, 4, 5]


def test_a_large_file_shows_a_sample_first_and_all_of_it_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics_index, "SAMPLED_BYTES", 1 << 16)
    path = tmp_path / "metrics.jsonl"
    path.write_text(text_of(*range(1, 20_001)))
    index = MetricsIndex(path)
    assert not index.advance(1)
    first = index.line(LOSS, "")
    assert index.sample is not None and first.xs[0] == 1 and first.xs[-1] > 19_000 and len(first.xs) > 500
    assert index.latest["train"]["step"] == 20_000
    line = whole(index).line(LOSS, "")
    assert index.sample is None and index.lines == 20_000 and len(line.xs) <= CAPACITY
    assert min(line.low) == pytest.approx(3 - 200) and max(line.high) == pytest.approx(2.99)


def test_a_part_is_as_exact_as_the_file(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text_of(*range(1, 20_001)))
    index = whole(MetricsIndex(path))
    assert index.line(LOSS, "", 15_000, 15_100).xs == list(range(15_000, 15_101))
    assert len(index.line(LOSS, "", 1, 20_000).xs) > 500
    assert index.line(LOSS, "", 30_000, 40_000).xs == []


def test_series_bound_what_they_draw_together():
    series = Series()
    values = [((step * 7919) % 1000) / 10 for step in range(10 * CAPACITY)]
    for step, value in enumerate(values):
        series.add(step, value)
    assert len(series) <= CAPACITY and sum(series.count) == len(values)
    assert min(series.low) == min(values) and max(series.high) == max(values)
    assert sum(series.total) == pytest.approx(sum(values))
    assert list(series.steps) == sorted(series.steps) and series.last == values[-1]


def test_samples_and_last_rows_of_files_that_are_not_there(tmp_path: Path):
    assert sampled_rows(tmp_path / "none", 5) == [] and last_row(tmp_path / "none", "train") is None
    (tmp_path / "empty").touch()
    assert sampled_rows(tmp_path / "empty", 5) == [] and last_row(tmp_path / "empty", "train") is None


def test_too_many_names_do_not_fill_the_memory(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        "".join(json.dumps({"step": step, "kind": "train", f"name{step}": 1.0}) + "\n" for step in range(1, 1000))
    )
    assert len(whole(MetricsIndex(path)).series) == metrics_index.MOST_SERIES
