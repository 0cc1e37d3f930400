"""Forms are recognised from columns; what does not fit is refused with what was found."""

import pytest

from fitune.data.read.recognise import recognise
from fitune.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "pig"}, {"role": "assistant", "content": "igpay"}
GOOD = {
    "messages": {"messages": [USER, ASSISTANT]},
    "conversations": {"conversations": [{"from": "human", "value": "pig"}, {"from": "gpt", "value": "igpay"}]},
    "prompt_completion": {"prompt": "pig", "completion": "igpay"},
    "alpaca": {"instruction": "pig", "input": "", "output": "igpay"},
}


@pytest.mark.parametrize(("name", "row"), GOOD.items())
def test_each_form_becomes_the_same_conversation(name: str, row: dict):
    form = recognise(tuple(row))
    assert form.name == name
    assert form.to_example(row, None, 1).messages == (USER, ASSISTANT)


def test_text_prompt_messages_alpaca_input_and_system():
    assert recognise(["text"]).to_example({"text": "a b"}, None, 3).text == "a b"
    form = recognise(["prompt", "completion"])
    turns = form.to_example({"prompt": [USER], "completion": [ASSISTANT]}, "be kind", 1).messages
    assert turns == ({"role": "system", "content": "be kind"}, USER, ASSISTANT)
    own = form.to_example({"prompt": "pig", "completion": "igpay", "system": "own"}, "be kind", 1).messages
    assert own and own[0] == {"role": "system", "content": "own"}
    row = {"instruction": "Translate.", "input": "pig", "output": "igpay"}
    asked = recognise(tuple(row)).to_example(row, None, 1).messages
    assert asked and asked[0]["content"] == "Translate.\n\npig"


def test_columns_are_mapped_by_name():
    form = recognise(["q", "a"], mapping={"prompt": "q", "completion": "a"})
    assert form.to_example({"q": "pig", "a": "igpay"}, None, 1).messages == (USER, ASSISTANT)
    with pytest.raises(DataError, match=r'maps prompt to "qq".*did you mean "q"'):
        recognise(["q", "a"], mapping={"prompt": "qq"})
    with pytest.raises(DataError, match=r'"promt", which no form uses \(did you mean "prompt"'):
        recognise(["q", "a"], mapping={"promt": "q"})


def test_unknown_columns_say_what_was_found_and_what_exists():
    found_and_known = r"columns question, reply.*prompt_completion: prompt, completion.*data.columns"
    with pytest.raises(DataError, match=found_and_known):
        recognise(["question", "reply"])


def test_columns_that_differ_in_case_are_the_forms_own():
    found = recognise(["Question", " ANSWER", "System", "id"])
    assert found.name == "question_answer"
    assert found.to_messages({"Question": "q", " ANSWER": "a", "System": "s", "id": 1}, None, 1) == [
        {"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
    ]  # fmt: skip
    with pytest.raises(DataError, match="no form is recognised"):
        recognise(["question", "Answer", "ANSWER"])  # which of the two is meant cannot be told


def test_other_names_come_with_the_flag_that_maps_them():
    with pytest.raises(DataError, match=r'--data.columns "prompt=Frage,completion=Antwort"'):
        recognise(["Frage", "Antwort"])


def test_preference_data_is_recognised_and_refused():
    for columns in (["prompt", "chosen", "rejected"], ["prompt", "completion", "label"]):
        with pytest.raises(DataError, match="preference data"):
            recognise(columns)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "pig", "completion": None}, "row 7 has no completion: it is missing"),
        ({"prompt": "pig", "completion": "  "}, "row 7 has no completion: it is blank"),
        ({"prompt": float("inf"), "completion": "x"}, "row 7: prompt is inf (float)"),
        ({"messages": []}, "expected a list of messages"),
        ({"messages": [USER]}, "row 7 has no answer: its roles are user"),
        ({"messages": [{"content": "x"}]}, "a message has no role"),
        ({"messages": [{"role": "user", "content": None}]}, "the content of a user message is None"),
        ({"messages": ["x"]}, "a message is 'x'"),
    ],
)
def test_rows_that_are_not_of_their_form(row: dict, message: str):
    with pytest.raises(DataError) as caught:
        recognise(tuple(row)).to_example(row, None, 7)
    assert message in str(caught.value)
