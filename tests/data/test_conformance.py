"""What follows the generation prompt is trained, token by token, over every chat template at hand.

The templates are those that ship inside trl (as their publishers wrote them) and short ones of older families. The
tokenizer is one that knows each template's special tokens. Cases × templates; a refusal is right only where the
template itself refuses or cannot show what the row holds.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import trl
from transformers import AutoTokenizer

from fitune.data.examples import Example, Message
from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import TokenRow
from fitune.errors import DataError

FOLDER = Path(trl.__file__).parent / "chat_templates"
SPECIAL = re.compile(
    r"<\|[^|<>\n ]{1,40}\|>|<｜[^<>\n]{1,40}｜>|<[a-z_]+_of_[a-z]+>|<\|?turn\|?>|<\|?channel\|?>|\[gMASK\]|<sop>"
    r"|<end_of_utterance>|<\|[a-z_]+>|<[a-z_]+\|>"
)
OWN = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "llama2": "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}{{ raise_exception('no system') }}"
    "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}",
    "mistral": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}{{ raise_exception('no system') }}{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}",
    "zephyr": "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "phi": "{% for m in messages %}{% if m.role == 'user' %}Instruct: {{ m.content }}\n"
    "{% else %}Output: {{ m.content }}{{ eos_token }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Output: {% endif %}",
}
PICTURES_ONLY = {"llava_next"}  # reads no message of plain text, nor of text parts, behind an answer
SHIPPED = {
    path.stem: path.read_text(encoding="utf-8")
    for path in sorted(FOLDER.glob("*.jinja"))
    if not path.stem.endswith("_training") and path.stem not in PICTURES_ONLY
}
TEMPLATES = SHIPPED | OWN

TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "A city."}},
                "required": ["city"],
            },
        },
    },
)


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def says(text: str, thought: str = "") -> Message:
    message: Message = {"role": "assistant", "content": text}
    return {**message, "reasoning_content": thought} if thought else message


def call(number: str, city: str) -> dict:
    return {"type": "function", "id": number, "function": {"name": "get_weather", "arguments": {"city": city}}}


def result(number: str, text: str) -> Message:
    return {"role": "tool", "content": text, "tool_call_id": number, "name": "get_weather"}


CALLS: Message = {
    "role": "assistant",
    "content": "",
    "tool_calls": [call("abcdefgh1", "Paris"), call("abcdefgh2", "Rome")],
}
ONE_CALL: Message = {"role": "assistant", "content": "", "tool_calls": [call("abcdefgh1", "Paris")]}
SYSTEM: Message = {"role": "system", "content": "Be brief."}
CASES: dict[str, tuple[list[Message], tuple]] = {
    "one turn": ([user("Hi?"), says("Hello you.")], ()),
    "several turns": ([user("Hi?"), says("Hello you."), user("And?"), says("Nothing.")], ()),
    "system": ([SYSTEM, user("Hi?"), says("Hello.")], ()),
    "thinking": ([user("2+2?"), says("Four.", "Two and two.")], ()),
    "thinking in several turns": (
        [user("2+2?"), says("Four.", "Two and two."), user("3+3?"), says("Six.", "Three twice.")],
        (),
    ),
    "thinking in one of two turns": ([user("2+2?"), says("Four."), user("3+3?"), says("Six.", "Three twice.")], ()),
    "a tool call": ([user("Paris?"), ONE_CALL, result("abcdefgh1", "sun"), says("Sun.")], TOOLS),
    "two tool calls": (
        [user("Both?"), CALLS, result("abcdefgh1", "sun"), result("abcdefgh2", "rain"), says("Sun and rain.")],
        TOOLS,
    ),
    "equal answers": ([user("a"), says("same"), user("b"), says("same")], ()),
    "blank ends": ([user("a"), says("  padded \n"), user("b"), says("\nline first")], ()),
    "quotes special tokens": ([user("a"), says("It ends with <|im_end|> or </s>, here"), user("b"), says("ok")], ()),
}
NO_SYSTEM = {"gemma", "llama2", "mistral"}
# Gemma 4 as first published, and Muse, show reasoning only beside tool calls or not at all.
HIDES_REASONING = {"gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4"}
ONE_CALL_A_TURN = {"llama3_1": "refuses", "llama3_2": "refuses", "gptoss": "does not show 2 calls"}


@pytest.fixture(scope="module")
def base_tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def renderer_of(base_tokenizer, name: str) -> Renderer:
    tokenizer = copy.deepcopy(base_tokenizer)
    tokens = sorted(set(SPECIAL.findall(TEMPLATES[name])))
    tokenizer.add_special_tokens({"additional_special_tokens": tokens}, replace_extra_special_tokens=False)
    return Renderer(tokenizer, TEMPLATES[name], (tokenizer.eos_token_id,))


def trained_runs(row: TokenRow) -> list[tuple[int, int]]:
    """Half-open spans of trained tokens."""
    edges = [at for at in range(1, len(row.trained)) if row.trained[at] != row.trained[at - 1]]
    edges += [len(row.trained)] * (len(edges) % 2)
    return list(zip(edges[::2], edges[1::2], strict=True))


def expected_refusal(name: str, case: str, renderer: Renderer) -> str | None:
    """Why the template cannot have the row; None where it must."""
    if case == "system" and name in NO_SYSTEM:
        return "refuses"
    if "thinking" in case and name in HIDES_REASONING:
        return "data.thinking: drop"
    if "tool" in case and not renderer.chat_format.shows_tools:
        return "cannot show them"
    if case == "two tool calls" and name in ONE_CALL_A_TURN:
        return ONE_CALL_A_TURN[name]
    if "tool" in case and name == "lfm2":
        return r"does not show \d calls"
    return None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_follows_the_generation_prompt_is_trained_through_the_end_token(base_tokenizer, name: str, case: str):
    renderer = renderer_of(base_tokenizer, name)
    messages, tools = CASES[case]
    example = Example(tuple(messages), None, 7, tools)
    if refusal := expected_refusal(name, case, renderer):
        with pytest.raises(DataError, match=rf"row 7: .*{refusal}"):
            list(renderer.tokenize(renderer.render(example, "assistant")))
        return
    rows = list(renderer.tokenize(renderer.render(example, "assistant")))
    spans = [(row, start, end) for row in rows for start, end in trained_runs(row)]
    answers = [at for at, said in enumerate(messages) if said["role"] == "assistant"]
    assert len(spans) == len(answers)
    for at, (row, start, end) in zip(answers, spans, strict=True):
        thinks = bool(messages[at].get("reasoning_content"))
        # The prompt is what chat and evaluation ask with, by token ids.
        assert list(row.input_ids[:start]) == renderer.prompt_ids(messages[:at], tools, thinks)
        answer = renderer.tokenizer.decode(row.input_ids[start:end])
        for text in (messages[at]["content"].strip(), messages[at].get("reasoning_content", "")):
            assert text in answer
        for one in messages[at].get("tool_calls", ()):
            assert one["function"]["name"] in answer and one["function"]["arguments"]["city"] in answer
        # The last trained token is one that ends a turn, and stands nowhere in the answer itself.
        assert row.input_ids[end - 1] in renderer.stop_ids
        assert row.input_ids[end - 1] in renderer.tokenizer.all_special_ids


# TRL's training templates mark what it trains. Beside what `same` forgives they differ from us in these, and why.
def stated_difference(name: str, case: str, messages: list[Message]) -> str | None:
    if name.startswith("deepseek"):
        return "no thought: TRL trains answers behind a header that chat never ends a prompt with, and drops reasoning"
    if name == "gptoss" and sum(said["role"] == "assistant" for said in messages) > 1 and "tool" not in case:
        return "earlier turns end as history does (`<|end|>`), where the model says `<|return|>`"
    if case == "thinking in several turns" and name.startswith(("glm", "nemotron", "diffusion")):
        return "the conversation is rendered once, so earlier turns lose their reasoning"
    if "tool" in case and name.startswith("diffusion"):
        return "the token at which a served model stops for the tool's result is not trained"
    return None


def same(theirs: str, prompt: str, ours: str) -> bool:
    """Whether TRL trains what we train, but for what is no part of an answer that chat asks for.

    Forgiven: what the generation prompt already gives (a literal header, an opened or empty thought), and the line break
    or second end token that the template writes behind the end.
    """
    heads = [size for size in range(min(len(theirs), len(prompt)) + 1) if prompt.endswith(theirs[:size])]
    behind = ("", "\n", "\n<|im_end|>", "<|im_end|>")
    return any(theirs[size:] == ours + more for size in heads for more in behind)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", [name for name in SHIPPED if (FOLDER / f"{name}_training.jinja").exists()])
def test_what_trl_trains_is_what_we_train_but_for_a_stated_list(base_tokenizer, name: str, case: str):
    renderer = renderer_of(base_tokenizer, name)
    messages, tools = CASES[case]
    if expected_refusal(name, case, renderer):
        return  # the test above holds that it is refused
    decode = renderer.tokenizer.decode
    rows = renderer.tokenize(renderer.render(Example(tuple(messages), None, 1, tools), "assistant"))
    ours = [
        (decode(row.input_ids[:start]), decode(row.input_ids[start:end]))
        for row in rows
        for start, end in trained_runs(row)
    ]
    marked = renderer.tokenizer.apply_chat_template(
        renderer.chat_format.adapt(messages),
        tools=list(tools) or None,
        chat_template=(FOLDER / f"{name}_training.jinja").read_text(encoding="utf-8"),
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    whole = TokenRow(tuple(marked["input_ids"]), tuple(map(bool, marked["assistant_masks"])), 1)
    theirs = [decode(whole.input_ids[start:end]) for start, end in trained_runs(whole)]
    assert len(theirs) == len(ours)
    differs = not all(same(text, *one) for text, one in zip(theirs, ours, strict=True))
    assert differs == (stated_difference(name, case, messages) is not None)
