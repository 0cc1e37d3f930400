"""The mask is the answer and its end token, whatever the template; references are the answers themselves."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fitune.data.examples import Example
from fitune.data.render.asking import Asking
from fitune.data.render.renderer import Renderer
from fitune.data.render.show import show_row, trained_text
from fitune.errors import DataError

# Short templates in the manner of the families named, each with its own trap.
TEMPLATES = {
    "chatml": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "strips": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "default system": "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # Llama 2: the blank before the answer is not part of the generation prompt, and merges with the first word.
    "inst": "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} <|im_end|>{% endif %}{% endfor %}",
    "strict roles": "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    # Qwen 3 drops the reasoning of all but the last answer.
    "rewrites": "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
}


@pytest.fixture(scope="module")
def tokenizer(tiny_llama):
    return AutoTokenizer.from_pretrained(tiny_llama)


def renderer_of(tokenizer, name: str) -> Renderer:
    return Renderer(tokenizer, TEMPLATES[name], (tokenizer.eos_token_id,))


def talk(*contents: str) -> Example:
    roles = ("user", "assistant")
    turns = tuple({"role": roles[index % 2], "content": text} for index, text in enumerate(contents))
    return Example(turns, None, 1)


def trained(renderer: Renderer, example: Example, loss_on: str, marker: str | None = None) -> str:
    rows = renderer.tokenize(renderer.render(example, loss_on, marker))
    return "".join(trained_text(row, renderer.tokenizer) for row in rows)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_answer_and_its_end_token_are_trained_and_nothing_else(tokenizer, name: str):
    renderer = renderer_of(tokenizer, name)
    assert trained(renderer, talk("pig", "igpay"), "completion").replace(" ", "") == "igpay<|im_end|>"
    both = trained(renderer, talk("pig", "igpay", "eat", "eatway"), "assistant").replace(" ", "")
    assert both == "igpay<|im_end|>eatway<|im_end|>"
    last = trained(renderer, talk("pig", "igpay", "eat", "eatway"), "last_assistant").replace(" ", "")
    assert last == "eatway<|im_end|>"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(prompt=st.text(max_size=30), answer=st.text(max_size=30))
def test_any_text_is_trained_whole(tokenizer, prompt: str, answer: str):
    renderer = renderer_of(tokenizer, "chatml")
    specials = ("<|im_start|>", "<|im_end|>")
    # Without the special tokens the answer must come back to the letter: bytes are never lost at a boundary.
    got = trained(renderer, talk(prompt, answer), "completion")
    assert got == answer + specials[1]


def test_an_answer_that_repeats_the_prompt_is_found_at_its_own_place(tokenizer):
    renderer = renderer_of(tokenizer, "chatml")
    example = talk("igpay", "igpay", "igpay", "igpay")
    (row,) = renderer.render(example, "assistant")
    assert [row.text[a:b] for a, b in row.spans] == ["igpay<|im_end|>"] * 2
    assert row.spans[0] != row.spans[1]


def test_pad_equal_to_end_does_not_unteach_stopping(tokenizer):
    from fitune.data.packing.padding import pad_collate

    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    renderer = renderer_of(tokenizer, "chatml")
    rows = [
        row for text in ("b", "b " * 20) for row in renderer.tokenize(renderer.render(talk("a", text), "completion"))
    ]
    labels = pad_collate(rows, tokenizer.pad_token_id)["labels"]
    assert (labels == tokenizer.eos_token_id).sum(1).tolist() == [1, 1]


def test_training_tokens_begin_with_the_tokens_of_chat(tokenizer):
    renderer = renderer_of(tokenizer, "default system")
    example = talk("pig", "igpay")
    (row,) = renderer.tokenize(renderer.render(example, "completion"))
    prompt = renderer.prompt_ids(list(example.messages or ())[:1])
    assert list(row.input_ids[: len(prompt)]) == prompt
    assert not any(row.trained[: len(prompt)]) and row.trained[len(prompt)]


def test_response_template_trains_what_follows_each_marker(tokenizer):
    renderer = renderer_of(tokenizer, "chatml")
    marker = "<|im_start|>assistant\n"
    got = trained(renderer, talk("pig", "igpay", "eat", "eatway"), "response_template", marker)
    assert got == "igpay<|im_end|>eatway<|im_end|>"
    assert trained(renderer, talk("pig", "igpay"), "response_template", "### Response:") == ""


def test_all_trains_every_token_and_plain_text_ends_with_the_end_token(tokenizer):
    renderer = renderer_of(tokenizer, "chatml")
    assert trained(renderer, talk("pig", "igpay"), "all") == renderer.text_of(talk("pig", "igpay").messages or ())
    assert trained(renderer, Example(None, "the pig", 1), "all") == "the pig" + tokenizer.eos_token


@pytest.mark.parametrize("template", ["gemma"])
def test_bos_stands_exactly_once_in_chat_and_in_plain_text(tiny_model, template: str):
    specials = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    folder = tiny_model("gemma", template=template, specials=specials, adds_bos=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    renderer = Renderer(tokenizer, tokenizer.chat_template, tuple(tokenizer.convert_tokens_to_ids(["<end_of_turn>"])))
    for example in (talk("pig", "igpay"), Example(None, "the pig", 1)):
        (row,) = renderer.tokenize(renderer.render(example, "completion"))
        assert row.input_ids.count(tokenizer.bos_token_id) == 1 and row.input_ids[0] == tokenizer.bos_token_id
    assert renderer.prompt_ids([{"role": "user", "content": "x"}]).count(tokenizer.bos_token_id) == 1
    assert trained(renderer, talk("pig", " igpay "), "completion") == "igpay<end_of_turn>"


def test_what_the_template_refuses_or_hides_is_an_error_that_says_so(tokenizer):
    with pytest.raises(
        DataError, match=r"row 1: the chat template refuses a conversation of user, user: roles must alternate"
    ):
        turns = ({"role": "user", "content": "a"},) * 2 + ({"role": "assistant", "content": "b"},)
        renderer_of(tokenizer, "strict roles").render(Example(turns, None, 1), "assistant")
    shouts = Renderer(tokenizer, TEMPLATES["chatml"].replace("m.content", "m.content | upper"))
    with pytest.raises(DataError, match="row 1: the chat template does not show the answer as it is: 'igpay' became"):
        shouts.render(talk("pig", "igpay"), "assistant")


def test_a_turn_whose_history_is_rewritten_is_a_row_of_its_own(tokenizer):
    renderer = renderer_of(tokenizer, "rewrites")
    example = talk("pig", "<think>x</think>igpay", "eat", "eatway")
    first, second = renderer.tokenize(renderer.render(example, "assistant"))
    assert trained_text(first, tokenizer) == "<think>x</think>igpay<|im_end|>"
    assert trained_text(second, tokenizer) == "eatway<|im_end|>" and "x" not in tokenizer.decode(second.input_ids)
    assert trained(renderer, example, "last_assistant") == "eatway<|im_end|>"


def test_show_marks_what_is_trained(tokenizer):
    renderer = renderer_of(tokenizer, "chatml")
    (row,) = renderer.tokenize(renderer.render(talk("pig", "ig pay"), "completion"))
    plain = show_row(row, tokenizer, colour=False).plain
    assert plain.endswith("pig<|im_end|>↵\n<|im_start|>assistant↵\n⟦ig pay<|im_end|>⟧")
    split = show_row(row, tokenizer, colour=False, tokens=True).plain
    assert "·" in split and split.count("│") >= row.num_tokens - 4 and "<|im_end|>│⟧" in split
    coloured = show_row(row, tokenizer, colour=True)
    assert [str(span.style) for span in coloured.spans if "green" in str(span.style)] == ["black on green"]


def test_show_keeps_characters_of_several_tokens_whole(tokenizer):
    renderer = renderer_of(tokenizer, "chatml")
    (row,) = renderer.tokenize(renderer.render(talk("把“猪”翻译一下", "伊格佩 👩‍🔬 \ufffd é"), "completion"))
    for tokens in (False, True):
        plain = show_row(row, tokenizer, colour=False, tokens=tokens).plain
        shown = plain.replace("│", "").replace("·", " ")
        assert "把“猪”翻译一下" in shown and "伊格佩 👩‍🔬" in shown and shown.count("\ufffd") <= 3


def test_every_answer_of_a_completion_is_trained_and_what_the_prompt_has_begun_is_not(tokenizer):
    renderer = renderer_of(tokenizer, "chatml")
    talked = talk("pig", "igpay", "eat", "eatway")
    completion = Example(talked.messages, None, 1, completion_from=1)
    assert trained(renderer, completion, "completion") == "igpay<|im_end|>eatway<|im_end|>"
    assert trained(renderer, talked, "completion") == "eatway<|im_end|>"
    begun = Example(talk("pig", "I think igpay").messages, None, 1, completion_from=1, begun=7)
    assert trained(renderer, begun, "completion") == " igpay<|im_end|>"
    (row,) = renderer.tokenize(renderer.render(begun, "completion"))
    assert tokenizer.decode(row.input_ids).endswith("I think igpay<|im_end|>")


def test_reasoning_is_trained_shown_or_left_out(tokenizer):
    messages = ({"role": "user", "content": "pig"}, {"role": "assistant", "content": "igpay", "reasoning_content": "p"})
    example = Example(messages, None, 1)
    said = {
        how: trained(Renderer(tokenizer, TEMPLATES["chatml"], (tokenizer.eos_token_id,), how), example, "completion")
        for how in ("auto", "train", "mask", "drop")
    }
    assert said["auto"] == said["train"] == "<think>\np\n</think>\n\nigpay<|im_end|>"
    assert said["mask"] == "\n</think>\n\nigpay<|im_end|>"
    assert said["drop"] == "igpay<|im_end|>"


def test_a_system_prompt_goes_into_the_first_user_message_where_it_is_asked_for(tokenizer):
    strict = renderer_of(tokenizer, "strict roles")
    messages = ({"role": "system", "content": "Be kind."}, *(talk("pig", "igpay").messages or ()))
    with pytest.raises(DataError, match="roles must alternate"):
        strict.render(Example(messages, None, 1), "completion")
    folded = Renderer(strict.tokenizer, strict.template_text, strict.end_ids, asking=Asking(system_as_user=True))
    (row,) = folded.render(Example(messages, None, 1), "completion")
    assert row.text == "<|im_start|>user\nBe kind.\n\npig<|im_end|><|im_start|>assistant\nigpay<|im_end|>"
    assert folded.prompt_ids(list(messages[:2])) == strict.encoder.ids(row.text[: row.prompts[0]])


def test_a_template_that_writes_the_date_writes_that_of_the_training(tokenizer):
    template = "{{ strftime_now('%d %b %Y') }} " + TEMPLATES["chatml"]
    renderer = Renderer(tokenizer, template, (tokenizer.eos_token_id,), asking=Asking(date="2026-02-03"))
    (row,) = renderer.render(talk("pig", "igpay"), "completion")
    assert row.text.startswith("03 Feb 2026 <|im_start|>user")
    assert tokenizer.decode(renderer.prompt_ids([{"role": "user", "content": "x"}])).startswith("03 Feb 2026")
