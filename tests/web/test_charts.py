"""Charts tell their values in words, stay inside their frame, and take any numbers and names."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from fitune.web.charts import HEIGHT, WIDTH, Line, histogram, line_chart, sparkline, ticks
from fitune.web.figures import clock, number
from fitune.web.tables import marked, table


def drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(re.sub(r"&(?!amp;|lt;|gt;|quot;|#)", "&amp;", text))


@pytest.mark.parametrize(
    "ys", [[1.0, 2.0, 3.0], [5.0, 5.0, 5.0], [0.0, 0.0, 0.0], [-1e9, 1e9, 0.0], [1e-12, 2e-12, 1e-12]]
)
def test_every_point_lies_in_the_frame(ys: list[float]):
    figure = drawn(line_chart([Line("a", [1, 2, 3], ys)], "loss"))
    (curve,) = figure.iter("polyline")
    points = [tuple(map(float, point.split(","))) for point in curve.attrib["points"].split()]
    assert len(points) == 3 and all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_what_a_chart_shows_is_said():
    text = line_chart([Line("", [1, 40], [2.5, 0.5])], "held-out loss")
    assert 'aria-label="held-out loss: from 2.5 at step 1 to 0.5 at step 40, lowest 0.5, highest 2.5"' in text


def test_names_are_escaped_everywhere():
    bad = '<script>"&'
    figure = drawn(line_chart([Line(bad, [1, 2], [1, 2]), Line("b", [1, 2], [2, 1])], bad, key=bad))
    assert [one.tag for one in figure.iter() if one.tag == "script"] == []
    drawn(sparkline([1, 2], bad))
    assert "<script>" not in table([bad], [[bad]], bad) + marked(bad, bad)


def test_a_single_point_and_none():
    assert "<circle" in line_chart([Line("", [1], [1])], "a") and line_chart([Line("", [], [])], "a") == ""
    assert sparkline([1.0], "a") == ""


@pytest.mark.parametrize(("low", "high", "found"), [(0, 10, [0, 5, 10]), (0.1, 0.9, [0.2, 0.4, 0.6, 0.8]), (3, 3, [3])])
def test_ticks_are_round(low: float, high: float, found: list[float]):
    assert ticks(low, high) == pytest.approx(found)


def test_bars_beyond_the_limit_stand_out():
    text = histogram([0, 10, 20, 30], [5, 3, 1], "lengths", limit=20)
    assert text.count('class="bar over"') == 1 and text.count('class="bar"') == 2 and "limit 20" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (12345.6, "12,346"), (0.12346, "0.1235"), (1.2e-5, "1.2e-5"), (float("inf"), "not finite"), (-2.5, "-2.5")],
)  # fmt: skip
def test_numbers(value: float, text: str):
    assert number(value) == text


def test_clocks():
    assert clock(200) == "3:20" and clock(3800) == "1:03:20" and clock(-1) == "0:00"
