"""Go templates derived from Jinja ones. Expected texts are the Jinja template's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from fitune.errors import ModelError
from fitune.exporting.go_template import derive, probes

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' "
    "+ message['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
# The system prompt goes into the user's turn: no fixed text around each turn makes this.
MISTRAL = (
    "{{ bos_token }}{% set ns = namespace(system='') %}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{% set ns.system = message['content'] + '\n\n' %}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' + ns.system + message['content'] + ' [/INST]' }}"
    "{% set ns.system = '' %}{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
LAST_DIFFERS = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] }}"
    "{% if not loop.last %}{{ '|' }}{% endif %}{% endfor %}{{ '\nassistant: ' if add_generation_prompt else '' }}"
)


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.mark.parametrize("template", [None, LLAMA3, ZEPHYR], ids=["chatml", "llama3", "zephyr"])
def test_turns_render_as_the_jinja_template_does(tokenizer: Any, template: str | None):
    text = template or tokenizer.chat_template
    turns = derive(tokenizer, text)
    for messages in probes():
        wanted = tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False, add_generation_prompt=True)
        assert turns.render(messages) == wanted


def test_default_system_prompt_is_taken_over(tokenizer: Any):
    turns = derive(tokenizer, tokenizer.chat_template)
    assert turns.default_system == "<|im_start|>system\nYou help.<|im_end|>\n"
    assert 'ne (index .Messages 0).Role "system"' in turns.go()


def test_bos_is_left_to_a_runtime_that_adds_it(tokenizer: Any):
    turns = derive(tokenizer, LLAMA3, tokenizer.bos_token)
    assert turns.start == tokenizer.bos_token
    assert not turns.go().startswith(tokenizer.bos_token)
    assert tokenizer.bos_token in derive(tokenizer, LLAMA3).go()


@pytest.mark.parametrize("template", [MISTRAL, LAST_DIFFERS], ids=["system in the user's turn", "last differs"])
def test_what_cannot_be_derived_is_said(tokenizer: Any, template: str):
    with pytest.raises(ModelError, match="cannot be written as Ollama's"):
        derive(tokenizer, template)
