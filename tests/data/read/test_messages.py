"""Messages of every writer become the same; what cannot be meant is refused with the row and what to do."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fitune.data.examples import Example
from fitune.data.read.messages.roles import ALIASES, CALL, role_of
from fitune.data.read.read_facts import RowLeftOut
from fitune.data.read.recognise import recognise
from fitune.errors import DataError


def example_of(row: dict[str, Any], system: str | None = None) -> Example:
    return recognise(tuple(row), sample=row).to_example(row, system, 7)


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def messages_of(*messages: dict[str, Any], **columns: Any) -> Any:
    return example_of({"messages": list(messages), **columns}).messages


ASKED, SAID = said("user", "rain?"), said("assistant", "no")


def call(name: str = "w", **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


CALLS = said("assistant", "", tool_calls=[call(city="Rome")])
RESULT = said("tool", "18")
WANTED = (ASKED, CALLS, RESULT, SAID)
TOOL_CALL = {"name": "w", "arguments": {"city": "Rome"}}
TOOL = {"name": "w", "parameters": {"type": "object"}}
FRAMED = {"type": "function", "function": TOOL}


@pytest.mark.parametrize("name", [alias for role in ALIASES for alias in (role, *ALIASES[role])])
def test_roles_are_folded_and_known_by_their_aliases(name: str):
    for written in (name, name.upper(), f" {name.title()} "):
        role = role_of(written, "row 7")
        assert role in ALIASES and name in (role, *ALIASES[role])


def test_an_unknown_role_is_named_with_those_that_are_known():
    with pytest.raises(
        DataError, match=r'row 7: the role "asistant" is unknown \(did you mean "assistant"\?\); known are'
    ):
        messages_of(ASKED, said("asistant", "x"))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [ASKED, said("assistant", None, tool_calls=[call(city="Rome")]), RESULT, SAID]},
        {"messages": [ASKED, {"role": "assistant", "tool_calls": [call(city="Rome")]}, RESULT, SAID]},
        {"messages": [ASKED, said("assistant", "", tool_calls=json.dumps([call(city="Rome")])), RESULT, SAID]},
        {
            "messages": [
                ASKED,
                said("assistant", "", tool_calls=[{"function": {"name": "w", "arguments": '{"city": "Rome"}'}}]),
                RESULT,
                SAID,
            ]
        },
        {
            "messages": [
                ASKED,
                said("assistant", "", function_call={"name": "w", "arguments": '{"city": "Rome"}'}),
                RESULT,
                SAID,
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "rain?"},
                {"from": "function_call", "value": '{"name": "w", "arguments": {"city": "Rome"}}'},
                {"from": "observation", "value": "18"},
                {"from": "gpt", "value": "no"},
            ]
        },
        {
            "conversations": [
                {"from": "human", "value": "rain?"},
                {"from": CALL, "value": {"name": "w", "parameters": {"city": "Rome"}}},
                {"from": "tool", "value": 18},
                {"from": "gpt", "value": "no"},
            ]
        },
    ],
    ids=["null", "absent", "text", "arguments as text", "function_call", "sharegpt", "sharegpt objects"],
)
def test_every_form_of_calls_becomes_the_same(row: dict[str, Any]):
    assert example_of(row).messages == WANTED


@pytest.mark.parametrize(
    "tools",
    [[FRAMED], [TOOL], TOOL, json.dumps([TOOL]), [json.dumps(FRAMED)]],
    ids=["openai", "bare", "single", "text", "list of texts"],
)
def test_every_form_of_tools_becomes_openais(tools: Any):
    assert example_of({"messages": [ASKED, SAID], "tools": tools}).tools == (FRAMED,)
    assert example_of({"messages": [ASKED, SAID], "functions": tools}).tools == (FRAMED,)


@pytest.mark.parametrize("nothing", [None, "", [], "[]", float("nan")])
def test_no_tools_are_none(nothing: Any):
    assert example_of({"messages": [ASKED, SAID], "tools": nothing}).tools == ()


def test_several_calls_in_a_turn_and_calls_one_by_one_are_one_turn():
    both = said("assistant", "I look.", tool_calls=[call(city="Rome"), call(city="Oslo")])
    results = [said("tool", "18"), said("tool", "3")]
    assert messages_of(ASKED, both, *results, SAID) == (ASKED, both, *results, SAID)
    apart = [
        said("assistant", "I look."),
        {"role": CALL, "content": '{"name": "w", "arguments": {"city": "Rome"}}'},
        {"role": CALL, "content": '{"name": "w", "arguments": {"city": "Oslo"}}'},
    ]
    assert messages_of(ASKED, *apart, *results, SAID) == (ASKED, both, *results, SAID)


def test_hermes_marks_are_calls_where_the_row_names_its_tools_and_text_where_it_does_not():
    written = 'Look.\n<tool_call>\n{"name": "w", "arguments": {"city": "Rome"}}\n</tool_call>'
    result = said("tool", "<tool_response>\n18\n</tool_response>")
    calls = said("assistant", "Look.", tool_calls=[call(city="Rome")])
    assert messages_of(ASKED, said("assistant", written), result, SAID, tools=[TOOL]) == (ASKED, calls, RESULT, SAID)
    assert messages_of(ASKED, said("assistant", written), result, SAID) == (
        ASKED,
        said("assistant", written),
        result,
        SAID,
    )
    with pytest.raises(DataError, match="row 7: an answer has 'and so' where a call or its end should be"):
        messages_of(ASKED, said("assistant", written + " and so"), tools=[TOOL])


def test_glaives_texts_are_read():
    head = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
    row = {
        "system": head + json.dumps(TOOL, indent=4),
        "chat": 'USER: rain?\n\n\nASSISTANT: <functioncall> {"name": "w", "arguments": \'{"city": "Rome"}\'} '
        "<|endoftext|>\n\n\nFUNCTION RESPONSE: 18\n\n\nASSISTANT: no <|endoftext|>\n\n\n",
    }
    example = example_of(row)
    assert (example.messages, example.tools) == (WANTED, (FRAMED,))
    plain = {"system": "SYSTEM: Be kind.", "chat": "USER: rain?\n\n\nASSISTANT: no <|endoftext|>"}
    assert example_of(plain).messages == (said("system", "Be kind."), ASKED, SAID)


def test_openais_batch_requests_are_read_and_its_answers_alone_are_refused():
    body = {"model": "m", "messages": [ASKED, SAID], "tools": [TOOL]}
    for held in (body, json.dumps(body)):
        example = example_of({"custom_id": "1", "method": "POST", "url": "/v1", "body": held})
        assert (example.messages, example.tools) == ((ASKED, SAID), (FRAMED,))
    with pytest.raises(DataError, match="answers of an OpenAI batch, without what was asked; join them"):
        recognise(["id", "custom_id", "response", "error"])


@pytest.mark.parametrize(
    "answer",
    [
        said("assistant", "no", reasoning_content="see"),
        said("assistant", "no", reasoning="see"),
        said("assistant", "no", thinking="see", reasoning=None),
        said("assistant", "<think>\nsee\n</think>\n\nno"),
        said("assistant", "<think>see</think>no"),
        said("assistant", "<think>see</think>no", reasoning_content="see"),
        said("assistant", [{"type": "text", "text": "<think>see</think>"}, {"type": "text", "text": "no"}]),
    ],
)
def test_reasoning_beside_and_in_the_answer_becomes_the_same(answer: dict[str, Any]):
    assert messages_of(ASKED, answer) == (ASKED, said("assistant", "no", reasoning_content="see"))


def test_parts_of_an_answer_hold_its_reasoning_and_its_calls():
    thought = {"type": "reasoning", "value": "see"}
    parts = [thought, {"type": "text", "value": "Look."}, {"type": "tool_call", "value": json.dumps(TOOL_CALL)}]
    wanted = said("assistant", "Look.", tool_calls=[call(city="Rome")], reasoning_content="see")
    assert messages_of(ASKED, said("assistant", parts), RESULT, SAID) == (ASKED, wanted, RESULT, SAID)
    assert messages_of(ASKED, said("assistant", [{"type": "thinking", "thinking": "see"}, "no"])) == (
        ASKED,
        said("assistant", "no", reasoning_content="see"),
    )
    for wrong, says in (
        ([*parts[1:2], thought], "has reasoning behind text or a call"),
        ([thought], "belongs to an answer"),
    ):
        role = "user" if "belongs" in says else "assistant"
        with pytest.raises(DataError, match=f"row 7: the content of a {role} message .*{says}"):
            messages_of(ASKED, said(role, wrong), SAID)


def test_reasoning_in_an_answer_that_is_text_and_its_indentation():
    row = {"prompt": "rain?", "completion": "<think>\nsee\n</think>\n\n    return 1"}
    assert example_of(row).messages == (ASKED, said("assistant", "    return 1", reasoning_content="see"))


@pytest.mark.parametrize("text", ["<think>\n\n</think>\n\nno", "<think></think>no"])
def test_an_empty_block_is_no_reasoning(text: str):
    assert messages_of(ASKED, said("assistant", text)) == (ASKED, SAID)


@pytest.mark.parametrize("text", ["The mark <think> opens a thought.", "Write `</think>` behind it.", "x <thinker>"])
def test_a_mark_that_is_only_named_is_text(text: str):
    assert messages_of(ASKED, said("assistant", text)) == (ASKED, said("assistant", text))


def test_weights():
    rows = [said("assistant", "a", weight=0), ASKED, said("assistant", "b", weight=1), ASKED]
    rows += [said("assistant", "c", train=False), ASKED, said("assistant", "d", train=True), ASKED, SAID]
    example = example_of({"messages": [ASKED, *rows]})
    assert example.untrained == {1, 5}
    assert all(set(message) == {"role", "content"} for message in example.messages or ())
    moved = example_of({"messages": [ASKED, said("assistant", "a", weight=0), ASKED, SAID]}, system="be kind")
    assert moved.untrained == {2}


def test_a_row_of_empty_answers_is_left_out_and_one_empty_answer_is_not_trained():
    with pytest.raises(RowLeftOut, match="every answer is empty"):
        messages_of(ASKED, said("assistant", " "))
    assert example_of({"messages": [ASKED, said("assistant", None), ASKED, SAID]}).untrained == {1}


def test_a_system_prompt_of_the_row_goes_before_that_of_the_settings():
    row = {"messages": [ASKED, SAID], "system": "own"}
    assert (example_of(row, "other").messages or ())[0] == said("system", "own")
    for empty in (None, "", float("nan")):
        assert (example_of({**row, "system": empty}, "other").messages or ())[0] == said("system", "other")
    developer = example_of({"messages": [said("developer", "x"), ASKED, SAID]}, "other").messages
    assert developer == (said("developer", "x"), ASKED, SAID)


PICTURE = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": "a.png"}}]
BAD: dict[str, tuple[list[Any], str]] = {
    "a picture": ([said("user", PICTURE), SAID], "a part of type image_url; pictures, sound and files are not trained"),
    "another part": ([said("user", [{"type": "x", "text": "a"}]), SAID], "a part of type x; only parts of type text"),
    "a part without text": ([said("user", [{"type": "text", "text": 3}]), SAID], "a part whose text is 3"),
    "an unknown key": (
        [said("user", "x", contnt="y"), SAID],
        r'the key "contnt", .*\(did you mean "content"\?\); take it out',
    ),
    "both keys": ([said("user", "x", value="y"), SAID], "has content and value, and they differ; keep one"),
    "a role that is a number": ([said(3, "x"), SAID], "the role of a message is 3"),
    "calls of a user": (
        [said("user", "x", tool_calls=[call()]), SAID],
        "tool_calls in a message of user; it belongs to assis",
    ),
    "thoughts of a user": ([said("user", "x", reasoning="y"), SAID], "reasoning in a message of user"),
    "a result without a call": ([ASKED, RESULT, SAID], "message 2 is a tool's result and has no call before it"),
    "a result too many": (
        [ASKED, CALLS, RESULT, RESULT, SAID],
        "message 4 is a tool's result and is one more than there are",
    ),
    "a result of another call": (
        [ASKED, said("assistant", "", tool_calls=[{"id": "a", **call()}]), said("tool", "x", tool_call_id="b")],
        'message 3 is the result of call "b", and the calls before it are a',
    ),
    "a call without a name": (
        [ASKED, said("assistant", "", tool_calls=[{"arguments": {}}])],
        "a tool call has no name",
    ),
    "a call of a text": ([ASKED, said("assistant", "", tool_calls=["w()"])], "a tool call is no JSON"),
    "a call of a list": (
        [ASKED, said("assistant", "", tool_calls=[[1]])],
        "a tool call is .*; expected an object with name and arg",
    ),
    "an unknown key of a call": (
        [ASKED, said("assistant", "", tool_calls=[{"name": "w", "argments": {}}])],
        r'a tool call has the key "argments", .*did you mean "arguments"',
    ),
    "arguments that are no JSON": (
        [ASKED, said("assistant", "", tool_calls=[{"name": "w", "arguments": "{city: Rome}"}])],
        "the arguments of the call of w is no JSON",
    ),
    "arguments that are a list": (
        [ASKED, said("assistant", "", tool_calls=[{"name": "w", "arguments": [1]}])],
        r"the arguments of the call of w are \[1\], no JSON object",
    ),
    "two answers": ([ASKED, SAID, SAID], "messages 2 and 3 are both answers; join them"),
    "two system texts": (
        [said("system", "a"), said("system", "b"), ASKED, SAID],
        "begins with two system messages; join",
    ),
    "an unclosed thought": ([ASKED, said("assistant", "<think>\nlet me")], "begins with <think> and has no </think>"),
    "a thought that nothing opens": ([ASKED, said("assistant", "hm\n</think>\n\nno")], "has </think> and no <think>"),
    "a thought behind the answer": (
        [ASKED, said("assistant", "no\n<think>\nhm\n</think>")],
        "an answer has reasoning behind its beginning",
    ),
    "two thoughts": (
        [ASKED, said("assistant", "no", reasoning="a", thinking="b")],
        "reasoning and thinking, and they differ",
    ),
    "a thought beside another": (
        [ASKED, said("assistant", "<think>a</think>no", reasoning_content="b")],
        "reasoning beside its content and other reasoning in it",
    ),
    "a thought that is an object": (
        [ASKED, said("assistant", "no", reasoning={"a": 1})],
        "reasoning is .*; expected text",
    ),
    "a weight of a half": ([ASKED, said("assistant", "no", weight=0.5)], "weight is 0.5; it is 0 or 1"),
    "train as text": ([ASKED, said("assistant", "no", train="yes")], "train is 'yes'; it is true or false"),
    "a user that is trained": (
        [said("user", "x", train=True), SAID],
        "of a user message says to train it; only answers",
    ),
    "weights that differ": ([ASKED, said("assistant", "no", weight=0, train=True)], "contradict each other"),
    "a surrogate": ([said("user", "a\ud83d"), SAID], r"U\+D83D \(half of a surrogate pair\) as character 2"),
    "a surrogate in a call": (
        [ASKED, said("assistant", "", tool_calls=[call(city="\ud83d")])],
        r"row 7: the call of w has U\+D83D",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_meant_is_refused_with_the_row(name: str):
    messages, says = BAD[name]
    with pytest.raises(DataError, match=says) as caught:
        messages_of(*messages)
    assert "row 7" in str(caught.value)


def test_tools_that_are_none_are_refused():
    for tools, says in ((["w"], "a tool is no JSON"), ([{"type": "function"}], "has no name"), ([3], "a tool is 3")):
        with pytest.raises(DataError, match=f"row 7: {says}|row 7: a tool {says}"):
            messages_of(ASKED, SAID, tools=tools)


def test_pairs_carry_tools_and_refuse_weights():
    row = {"messages": [ASKED], "chosen": CALLS, "rejected": SAID, "tools": [TOOL]}
    pair = recognise(tuple(row), kind="pairs").to_pair(row, None, 7)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.tools) == ((ASKED,), (CALLS,), (SAID,), (FRAMED,))
    assert pair.example(better=True).tools == (FRAMED,)
    with pytest.raises(DataError, match="row 7: a pair's answers are compared whole; take weight and train out"):
        recognise(tuple(row), kind="pairs").to_pair({**row, "chosen": said("assistant", "x", weight=0)}, None, 7)


def test_weights_of_a_pairs_prompt_are_of_no_matter():
    prompt = [ASKED, said("assistant", "a", loss_weight=0.0), ASKED]
    row = {"chosen": [*prompt, said("assistant", "b", loss_weight=1.0)], "rejected": [*prompt, said("assistant", "c")]}
    pair = recognise(tuple(row), kind="pairs").to_pair(row, None, 7)
    assert (pair.prompt, pair.texts) == ((ASKED, said("assistant", "a"), ASKED), ("b", "c"))


def test_conversations_with_a_judgement_are_judged_answers_and_no_rows():
    row = {"messages": [ASKED, SAID], "label": False}
    judged = recognise(tuple(row), kind="judged", sample=row).to_judged(row, "be kind", 7)
    assert (judged.prompt, judged.completion, judged.desirable) == ((said("system", "be kind"), ASKED), (SAID,), False)
    with pytest.raises(DataError, match=r"preference data \(messages, label\), .*use method kto"):
        example_of(row)
    assert example_of({**row, "label": "spam"}).messages == (ASKED, SAID)
    with pytest.raises(DataError, match="row 7: messages must end with the answer that is judged"):
        recognise(tuple(row), kind="judged", sample=row).to_judged({"messages": [ASKED], "label": True}, None, 7)


@pytest.mark.parametrize("column", ["image", "images", "audios", "videos"])
def test_rows_with_pictures_in_a_column_are_refused(column: str):
    row = {"messages": [said("user", "<image>who?"), SAID], column: ["a.jpg"]}
    with pytest.raises(
        DataError, match=f"row 7 has something in the column {column}; pictures, sound and films are not"
    ):
        example_of(row)
    assert example_of({**row, column: []}).messages


def test_a_begun_answer_that_thinks_is_refused():
    row = {"prompt": [ASKED, said("assistant", "<think>\nhm")], "completion": "</think>no"}
    with pytest.raises(DataError, match="row 7: the prompt ends with an answer that calls tools or thinks"):
        example_of(row)
