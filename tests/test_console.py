"""JSON that every reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from fitune.console import follow, json_text, progress_in


def test_numbers_that_json_does_not_have_are_null():
    value = {"loss": math.nan, "rows": [{"norm": math.inf, "text": "ü"}, (1.5, -math.inf)], "path": Path("a/b")}
    text = json_text(value)
    assert "NaN" not in text and "Infinity" not in text and "ü" in text
    assert json.loads(text) == {"loss": None, "rows": [{"norm": None, "text": "ü"}, [1.5, None]], "path": "a/b"}


def test_batches_are_told_in_the_bar_that_is_on_the_screen():
    told = []
    with progress_in(lambda *what: told.append(what)):
        assert list(follow(range(0, 20, 8), "evaluating")) == [0, 8, 16]
        assert list(follow(range(0, 20, 8), "")) == [0, 8, 16]
    assert told == [("evaluating", 0, 20), ("evaluating", 8, 20), ("evaluating", 16, 20), ("evaluating", 20, 20)]
    assert list(follow(range(2), "later")) == [0, 1] and len(told) == 4
