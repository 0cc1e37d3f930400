"""docs/data.md: every form has its row there, and every row is read as the page says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import fitune
from fitune.data.read.formats import READERS
from fitune.data.read.formats.compressed import UNPACK
from fitune.data.read.forms import DATA_FORMS
from fitune.data.read.messages.roles import ROLES
from fitune.data.read.recognise import recognise

PAGE = (Path(str(fitune.__file__)).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
FORMS = re.findall(r"^### `(\w+)`$(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL)
ROWS = [json.loads(row) for row in re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


def test_every_form_stands_on_the_page_and_no_other():
    assert sorted(name for name, _ in FORMS) == sorted(DATA_FORMS)
    assert len(ROWS) == len(DATA_FORMS) + 3


@pytest.mark.parametrize(("name", "text"), FORMS, ids=[name for name, _ in FORMS])
def test_the_row_of_a_form_is_recognised_and_read(name: str, text: str):
    (row,) = (json.loads(found) for found in re.findall(r"^```json\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    form = recognise(tuple(row), kind=DATA_FORMS[name].kinds[0], sample=row)
    assert form.name == name
    if form.facts.pair or form.facts.judged:
        read: Any = form.to_pair if form.facts.pair else form.to_judged
        said = read(DATA_FORMS[name].spread(row)[0] if DATA_FORMS[name].spread else row, None, 1)
        assert said.prompt[-1]["content"] == "Rain in Rome?"
    elif form.facts.text:
        assert form.to_example(row, None, 1).text == row["text"]
    else:
        messages = form.to_conversation(row, None, 1).messages or ()
        assert messages[0]["content"] == "Rain in Rome?"


def test_what_is_said_of_messages_is_so():
    tools, reasoning, weight = (recognise(tuple(row)).to_example(row, None, 1) for row in ROWS[-3:])
    assert tools.tools and (tools.messages or ())[1].get("tool_calls")
    assert (reasoning.messages or ())[1].get("reasoning_content") == "It is summer."
    assert weight.untrained == {1}


def test_every_ending_and_every_role_is_named():
    named = set(re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", PAGE, flags=re.MULTILINE | re.DOTALL)))
    assert {*READERS, *UNPACK} <= named
    assert {name for name in ROLES if name != "tool_calls"} <= named
