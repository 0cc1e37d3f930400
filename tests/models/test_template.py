"""The model's own template, ChatML for a model without one, and what stops an answer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from fitune.errors import ModelError
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, build_on_meta, load_base
from fitune.models.source import resolve
from fitune.models.template import CHATML, resolve_template
from fitune.models.tokenizer import load_tokenizer, stop_ids

CHAT = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "ellohay"}]


def tokenizer_of(folder: Path):
    return load_tokenizer(resolve(str(folder)))


def load(folder: Path, choice: str = "auto") -> LoadedBase:
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    precision = Precision(torch.float32, "test")
    return load_base(source, tokenizer, resolve_template(tokenizer, choice), detect("cpu"), precision)


def test_the_models_own(tiny_llama: Path):
    tokenizer = tokenizer_of(tiny_llama)
    template = resolve_template(tokenizer)
    assert template.text == tokenizer.chat_template
    assert (template.origin, template.end_of_turn, template.added_tokens) == ("model", "<|im_end|>", ())


def test_end_of_turn_that_is_not_the_end_token(tiny_model):
    """Gemma ends a turn with <end_of_turn> and a text with <eos>; both stop an answer."""
    specials = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    base = load(tiny_model("gemma2", template="gemma", specials=specials, adds_bos=True))
    assert base.template.end_of_turn == "<end_of_turn>"
    names = base.tokenizer.convert_ids_to_tokens(list(base.stop_ids))
    assert set(names) == {"<eos>", "<end_of_turn>"}
    assert base.model.generation_config.eos_token_id == list(base.stop_ids)


def test_chatml_for_a_base_model(tiny_gpt_neox: Path):
    base = load(tiny_gpt_neox)
    assert (base.template.origin, base.template.text, base.template.end_of_turn) == ("chatml", CHATML, "<|im_end|>")
    assert base.tokenizer.chat_template == CHATML
    assert base.tokenizer.convert_ids_to_tokens(list(base.new_token_ids)) == ["<|im_start|>", "<|im_end|>"]
    assert base.new_token_ids[1] in base.stop_ids
    assert any("ChatML is used" in note for note in base.notes)
    assert any("only their embedding rows are trained" in note for note in base.notes)
    text = base.tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nellohay<|im_end|>\n"
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert [ids.count(token) for token in base.new_token_ids] == [2, 2]
    asked = base.tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert text.startswith(asked)


@pytest.mark.parametrize("spare_rows", [20, 0])
def test_rows_grow_only_when_there_is_none_to_spare(tiny_model, spare_rows: int):
    """Pythia keeps more rows than tokens. A new row starts at the mean of the old ones, on both sides."""
    end = "<|endoftext|>"
    specials = {"bos_token": end, "eos_token": end, "unk_token": end}
    folder = tiny_model("gpt_neox", specials=specials, template=None, spare_rows=spare_rows, tie_word_embeddings=False)
    before = AutoModelForCausalLM.from_pretrained(folder)
    base, again = load(folder), load(folder)
    first, last = base.new_token_ids[0], base.new_token_ids[-1]
    rows = before.get_input_embeddings().weight.shape[0]
    assert base.model.get_input_embeddings().weight.shape[0] == max(rows, last + 1)
    assert base.model.config.vocab_size == max(rows, last + 1)
    for side in ("get_input_embeddings", "get_output_embeddings"):
        old, new = getattr(before, side)().weight, getattr(base.model, side)().weight
        torch.testing.assert_close(new[:first], old[:first], atol=0, rtol=0)
        for row in new[list(base.new_token_ids)]:
            torch.testing.assert_close(row, old[:first].mean(0), atol=1e-6, rtol=0)
        torch.testing.assert_close(getattr(again.model, side)().weight, new, atol=0, rtol=0)


def test_chatml_asked_for_adds_nothing_that_is_there(tiny_llama: Path):
    base = load(tiny_llama, "chatml")
    assert (base.template.origin, base.template.added_tokens, base.new_token_ids) == ("chatml", (), ())


def test_a_template_file(tiny_llama: Path, tmp_path: Path):
    path = tmp_path / "own.jinja"
    path.write_text("{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}")
    template = resolve_template(tokenizer_of(tiny_llama), str(path))
    assert (template.origin, template.end_of_turn) == ("file", "<|im_end|>")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file is there"),
        ("  \n", "is empty"),
        ("{% for m in messages %}", "cannot be rendered"),
        ("{{ raise_exception('no') }}", "cannot be rendered: no"),
        ("{% for m in messages %}{{ m['role'] }}{% endfor %}", "drops the assistant's answer"),
    ],
)
def test_a_bad_template_file(tiny_llama: Path, tmp_path: Path, text: str | None, message: str):
    path = tmp_path / "own.jinja"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ModelError, match=message):
        resolve_template(tokenizer_of(tiny_llama), str(path))


def test_pad_is_given_where_there_is_none(tiny_gpt_neox: Path):
    tokenizer = tokenizer_of(tiny_gpt_neox)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id  # masks are by position: see the data room's tests


def test_stop_ids_join_all_sources(tiny_llama: Path):
    class Generation:
        eos_token_id = (7, 9)

    tokenizer = tokenizer_of(tiny_llama)
    assert stop_ids(tokenizer, Generation, None) == tuple(sorted({7, 9, tokenizer.eos_token_id}))


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gemma2", "gpt2"])
def test_meta_model_is_the_same_model_without_memory(tiny_model, family: str):
    folder = tiny_model(family)
    real = AutoModelForCausalLM.from_pretrained(folder)
    meta = build_on_meta(AutoConfig.from_pretrained(folder), torch.bfloat16)
    assert type(meta) is type(real) and meta.training and meta.config.use_cache is False
    shapes = {name: tuple(weight.shape) for name, weight in real.named_parameters()}
    assert {name: tuple(weight.shape) for name, weight in meta.named_parameters()} == shapes
    assert {weight.device.type for weight in meta.parameters()} == {"meta"}
    assert {weight.dtype for weight in meta.parameters()} == {torch.bfloat16}
    assert meta.config._attn_implementation == real.config._attn_implementation
