"""Calls are read back from what each chat template of the `trl` package writes for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl

from fitune.data.render.renderer import Renderer
from fitune.errors import DataError
from fitune.models.source import resolve
from fitune.models.tokenizer import load_tokenizer
from fitune.serving.call_reader import CallReader, ToolCall

FOLDER = Path(trl.__file__).parent / "chat_templates"
TEMPLATES = sorted(path.stem for path in FOLDER.glob("*.jinja") if not path.stem.endswith("_training"))
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "It.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "deep": {"type": "object"}},
            },
        },
    }
    for name in ("get_weather", "get_time")
]
CALLS = (
    ToolCall("get_weather", {"city": 'São Paulo, "Center"', "days": 3}),
    ToolCall("get_time", {"city": "12"}),
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Any) -> Any:
    return load_tokenizer(resolve(str(tiny_model("llama"))))


def said(renderer: Renderer, content: str) -> str:
    """What a model would have to say to make the calls: the answer as the template writes it."""
    calls = [
        {"type": "function", "id": f"call0000{at}", "function": {"name": call.name, "arguments": call.arguments}}
        for at, call in enumerate(CALLS)
    ]
    asked: list[Any] = [{"role": "user", "content": "hello"}]
    answered = [*asked, {"role": "assistant", "content": content, "tool_calls": calls}]
    prompt = renderer.text_of(asked, generation_prompt=True, tools=TOOLS)
    whole = renderer.text_of(answered, tools=TOOLS)
    return whole[len(prompt) :] if whole.startswith(prompt) else whole[whole.rindex("hello") + 5 :]


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_come_back_as_they_were_made(name: str, tokenizer: Any) -> None:
    renderer = Renderer(tokenizer=tokenizer, template_text=(FOLDER / f"{name}.jinja").read_text(encoding="utf-8"))
    if not renderer.chat_format.shows_tools:
        pytest.skip("the template shows no tools")
    reader = CallReader.of(renderer)
    try:
        text = said(renderer, "")
    except DataError:
        pytest.skip("the template refuses two calls in a turn")
    if "get_weather" not in text:
        assert reader is None
        return
    assert reader is not None
    content, calls = reader.read(text, TOOLS)
    # gpt-oss shows the first call alone.
    assert tuple(calls) == (CALLS if "get_time" in text else CALLS[:1])
    assert "get_weather" not in content


def test_text_without_a_call_stays_content(tokenizer: Any) -> None:
    renderer = Renderer(tokenizer=tokenizer, template_text=(FOLDER / "qwen3.jinja").read_text(encoding="utf-8"))
    reader = CallReader.of(renderer)
    assert reader is not None
    for text in ('It is {"a": 1}.', "plain", '{"name": "unknown_tool", "arguments": {}}', "<tool_call>\n{broken"):
        assert reader.read(text, TOOLS) == (text, [])
