"""Whatever stands in a cell or a role: a row is trained as its JSON says, refused with its row, or left out and counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitune.data.read.cell_types import as_text, is_empty
from fitune.data.read.forms import DATA_FORMS
from fitune.data.read.forms.cells import is_ranking
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.messages.message import looks_like_message
from fitune.data.read.messages.roles import ROLES
from fitune.data.read.read_facts import RowLeftOut
from fitune.data.read.recognise import recognise
from fitune.errors import DataError

TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0<[{"), max_size=20)
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(), TEXTS)
CELLS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6
)
ROLE_NAMES = st.sampled_from([*ROLES, "Narrator", "", "assistant ", "GPT", "Tool Response"]) | SCALARS


def written(value: Any) -> str | None:
    """What a cell means, said once more and by other means: None where it is empty, and DataError where it is no text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        return value

    def constant(name: str) -> None:
        if name != "NaN":
            raise DataError("infinite")

    return json.dumps(json.loads(json.dumps(value), parse_constant=constant), ensure_ascii=False)


def outcome(of: Callable[[], Any]) -> Any:
    """What comes of a row: the value, or the word for how it is refused. Any other error is a fault of the reader."""
    try:
        return of()
    except RowLeftOut:
        return "left out"
    except DataError as error:
        assert "row 7" in str(error), error
        return "refused"


def says_nothing(content: Any) -> bool:
    """Whether a message's content is empty or blank."""
    return written(content) is None or content in ([], {}) or (isinstance(content, str) and not content.strip())


def expected(value: Any, required: bool) -> str:
    """What a text column is to hold."""
    try:
        text = written(value)
    except DataError:
        return "refused"
    if text is None:
        return "refused" if required else ""
    return "refused" if required and isinstance(value, str) and not text.strip() else text


def of_side(value: Any) -> str:
    """What a column is to hold that may also hold messages: a list of none is nothing."""
    return "refused" if value == [] else expected(value, True)


@settings(max_examples=300, deadline=None)
@given(CELLS)
def test_a_cell_is_text_as_its_json_says(value: Any):
    try:
        wanted = written(value)
    except DataError:
        wanted = "refused"
    assert is_empty(value) == (wanted is None)
    if wanted is not None:
        assert outcome(lambda: as_text(value, "row 7: x")) == wanted


@settings(max_examples=150, deadline=None)
@given(CELLS, CELLS, CELLS)
def test_alpacas_columns(instruction: Any, extra: Any, output: Any):
    row = {"instruction": instruction, "input": extra, "output": output}
    asked, more, answer = expected(instruction, True), expected(extra, False), of_side(output)
    got = outcome(lambda: recognise(tuple(row)).to_example(row, None, 7))
    if "refused" in (asked, more, answer) or is_ranking(output):
        assert got == "refused"
        return
    said = [message["content"] for message in got.messages]
    assert said == [f"{asked}\n\n{more}" if more.strip() else asked, answer]
    assert [message["role"] for message in got.messages] == ["user", "assistant"]


TWO_COLUMNS = [
    form for form in DATA_FORMS.values() if form.answer_column and len(form.needs) == 2 and form.name != "alpaca"
]


@pytest.mark.parametrize("form", TWO_COLUMNS, ids=lambda form: form.name)
@settings(max_examples=60, deadline=None)
@given(CELLS, CELLS, CELLS)
def test_questions_answers_and_system_prompts(form: DataForm, question: Any, answer: Any, system: Any):
    row = {form.needs[0]: question, form.needs[1]: answer, "system": system}
    wanted = [of_side(question), of_side(answer)]
    head = expected(system, False)
    got = outcome(lambda: recognise(tuple(row)).to_example(row, "default", 7))
    if "refused" in (*wanted, head) or is_ranking(answer):
        assert got == "refused"
        return
    assert [message["content"] for message in got.messages] == [head if head.strip() else "default", *wanted]


@settings(max_examples=150, deadline=None)
@given(CELLS)
def test_plain_text(value: Any):
    got = outcome(lambda: recognise(["text"]).to_example({"text": value}, None, 7).text)
    assert got == expected(value, True)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(ROLE_NAMES, CELLS), max_size=5))
def test_roles_and_contents(said: list[tuple[Any, Any]]):
    messages = [{"role": role, "content": content} for role, content in said]
    row = {"messages": messages}
    got = outcome(lambda: recognise(tuple(row)).to_example(row, None, 7))
    if got == "refused":
        return
    if got == "left out":
        answers = [content for role, content in said if ROLES.get(str(role).strip().casefold()) == "assistant"]
        assert answers and all(says_nothing(content) for content in answers)
        return
    assert len(got.messages) == len(messages)
    for message, (role, content) in zip(got.messages, said, strict=True):
        assert message["role"] == ROLES[role.strip().casefold().replace(" ", "_")]
        assert message["content"] == (written(content) or "" if content not in ([], {}) else "")
    roles = [message["role"] for message in got.messages]
    answers = [place for place, role in enumerate(roles) if role == "assistant"]
    assert got.untrained == {place for place in answers if not got.messages[place]["content"].strip()}
    assert ("assistant", "assistant") not in set(pairwise(roles)) and "tool" not in roles


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "true"),
        (0, "0"),
        (1.5, "1.5"),
        (date(2026, 1, 2), "2026-01-02"),
        (Decimal("1.10"), "1.10"),
        ([1, None], "[1, null]"),
    ],
)
def test_values_that_tables_hold(value: Any, text: str):
    row = {"prompt": value, "completion": "x"}
    example = recognise(tuple(row)).to_example(row, None, 7)
    assert (example.messages or ())[0]["content"] == text


@pytest.mark.parametrize("value", [b"x", object(), math.inf, {"a": math.inf}, {"a": {1}}, Decimal("NaN")])
def test_values_that_are_no_text_are_refused(value: Any):
    row = {"prompt": value, "completion": "x"}
    assert outcome(lambda: recognise(tuple(row)).to_example(row, None, 7)) == "refused"


@pytest.mark.parametrize("column", ["prompt", "completion", "chosen", "rejected"])
@pytest.mark.parametrize("write", [json.dumps, repr], ids=["JSON", "Python"])
def test_messages_written_as_text_are_messages_in_every_column(column: str, write: Callable[[Any], str]):
    pairs = column in ("chosen", "rejected")
    row: dict[str, Any] = (
        {"prompt": "a", "chosen": "b", "rejected": "c"} if pairs else {"prompt": "a", "completion": "b"}
    )
    said = {"role": "user" if column == "prompt" else "assistant", "content": 'it\'s "so"'}
    if pairs:  # both sides are messages, or both are text
        row |= {name: [{"role": "assistant", "content": row[name]}] for name in ("chosen", "rejected")}
    row[column] = write([said])
    form = recognise(tuple(row), kind="pairs" if pairs else "rows")
    if pairs:
        read = getattr(form.to_pair(row, None, 7), column)
    else:
        messages = form.to_example(row, None, 7).messages or ()
        read = messages[:1] if column == "prompt" else messages[1:]
    assert read == (said,)
    assert any(column in note and "read as messages" in note for note in form.tally.notes)


def test_text_that_looks_like_messages_and_cannot_be_read_is_refused():
    row = {"prompt": "[{'role': 'user', 'content': 'a'}\n {'role': 'user', 'content': array}]", "completion": "x"}
    with pytest.raises(DataError, match="row 7: prompt looks like a list of messages written as text, and is no JSON"):
        recognise(tuple(row)).to_example(row, None, 7)


@pytest.mark.parametrize(
    "answer", ['{"from": "Rome", "to": "Oslo"}', '[{"role": "admin"}]', "[1, 2]", {"from": "Rome", "to": "Oslo"}]
)
def test_json_that_is_an_answer_stays_text(answer: Any):
    assert not looks_like_message(answer)
    row = {"prompt": "a", "completion": answer}
    text = answer if isinstance(answer, str) else json.dumps(answer)
    assert (recognise(tuple(row)).to_example(row, None, 7).messages or ())[1]["content"] == text


@pytest.mark.parametrize("column", ["text", "instruction"])
def test_messages_written_as_text_in_a_column_of_text_are_refused(column: str):
    row = {
        column: json.dumps([{"role": "user", "content": "a"}]),
        **({"output": "b"} if column == "instruction" else {}),
    }
    with pytest.raises(DataError, match=f"row 7: {column} is a list of messages written as text; put it into a column"):
        recognise(tuple(row)).to_example(row, None, 7)


def test_a_prompt_alone_that_ends_with_an_answer_is_refused():
    row = {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "I think"}]}
    with pytest.raises(
        DataError, match="row 7: the prompt ends with an answer; take it out, or put it into a column compl"
    ):
        recognise(["prompt"], kind="prompts").to_conversation(row, None, 7)
