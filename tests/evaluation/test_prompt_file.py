"""Questions of data files, with and without their answers; the expectations are the files' own words."""

import json
from pathlib import Path

import pytest

from fitune.data.read.files import read_rows
from fitune.errors import DataError
from fitune.evaluation.prompt_file import questions


def asked(tmp_path: Path, *rows: dict, system: str | None = None) -> list:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return questions(read_rows(str(path)), system)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "pig"},
        {"prompt": "pig", "completion": "igpay"},
        {"prompt": "pig", "completion": ""},
        {"instruction": "pig", "input": ""},
        {"text": "pig"},
        {"question": "pig", "answer": "igpay"},
        {"messages": [user("pig")]},
        {"messages": [user("pig"), {"role": "assistant", "content": "igpay"}]},
        {"conversations": [{"from": "human", "value": "pig"}]},
        {"conversations": [{"from": "human", "value": "pig"}, {"from": "gpt", "value": "igpay"}]},
    ],
)
def test_each_form_asks_its_question_and_nothing_of_its_answer(tmp_path: Path, row: dict):
    assert asked(tmp_path, row) == [[user("pig")]]
    assert asked(tmp_path, row, system="be kind") == [[{"role": "system", "content": "be kind"}, user("pig")]]


def test_earlier_turns_a_rows_own_system_prompt_and_alpacas_input_are_kept(tmp_path: Path):
    turns = [user("a"), {"role": "assistant", "content": "b"}, user("c")]
    assert asked(tmp_path, {"messages": [*turns, {"role": "assistant", "content": "d"}]}) == [turns]
    own = asked(tmp_path, {"prompt": "pig", "system": "own"}, system="other")
    assert own == [[{"role": "system", "content": "own"}, user("pig")]]
    assert asked(tmp_path, {"instruction": "sum up", "input": "a pig"}) == [[user("sum up\n\na pig")]]


def test_a_row_with_nothing_to_ask_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="row 2"):
        asked(tmp_path, {"text": "pig"}, {"text": " "})
    with pytest.raises(DataError, match="row 1 has no prompt"):
        asked(tmp_path, {"messages": [{"role": "assistant", "content": "igpay"}]})
    with pytest.raises(DataError, match="no form is recognised"):
        asked(tmp_path, {"words": "pig"})
