"""JSON that every reader takes, and text that every terminal only shows."""

from __future__ import annotations

import io
import json
import math
import re
import sys
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fitune.console import follow, json_text, log, progress_in, stdout_console, warn


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


SAID = "a\x1b[31mred\x1b]0;title\x07\x9b2J\x7f\tb\n\ud800"


def test_no_control_character_reaches_the_terminal(capsys):
    for say in (log, warn, stdout_console().print):
        say(SAID)
    table = Table("x")
    table.add_row(Text(SAID))
    stdout_console().print(table)
    shown = "".join(capsys.readouterr())
    assert "red" in shown and "␛" in shown
    assert not [one for one in shown if (ord(one) < 32 and one != "\n") or 0x7F <= ord(one) < 0xA0]


def test_json_escapes_what_a_terminal_would_obey():
    text = json_text({"a": SAID})
    assert json.loads(text) == {"a": SAID} and not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", text)


def test_a_terminal_that_is_gone_stops_nothing(monkeypatch):
    class Gone(io.StringIO):
        def write(self, text):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(sys, "stderr", Gone())
    log("nobody reads this")
    warn("nor this")
