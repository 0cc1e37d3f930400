"""JSON that every reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

from fitune.console import json_text


def test_numbers_that_json_does_not_have_are_null():
    value = {"loss": math.nan, "rows": [{"norm": math.inf, "text": "ü"}, (1.5, -math.inf)], "path": Path("a/b")}
    text = json_text(value)
    assert "NaN" not in text and "Infinity" not in text and "ü" in text
    assert json.loads(text) == {"loss": None, "rows": [{"norm": None, "text": "ü"}, [1.5, None]], "path": "a/b"}
