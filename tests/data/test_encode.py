"""Tokens of pieces put together are those of the whole text, and a prompt has those that it has alone."""

from __future__ import annotations

import copy
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fitune.data.examples import Example, Rendered
from fitune.data.render import encode
from fitune.data.render.encode import Encoder, trained_tokens
from fitune.data.render.renderer import Renderer

TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = ["", " ", "a", "Pigs eat.", "  two\n\nlines ", "\n", "ähm ✓", "<|im_end|>", "don't", "1234 56", "\tx", "日本"]


def of_whole_texts(tokenizer, row: Rendered) -> tuple[list[int], list[bool]]:
    """Tokens of a row and which are trained, by the library's offsets over the whole text."""
    whole = tokenizer(row.text, add_special_tokens=False, return_offsets_mapping=True)
    prompts = [tokenizer(row.text[:border], add_special_tokens=False)["input_ids"] for border in row.prompts]
    assert all(whole["input_ids"][: len(prompt)] == prompt for prompt in prompts)
    begins = {border: len(prompt) for border, prompt in zip(row.prompts, prompts, strict=True)}
    # An end token that takes blanks along ends where its own text does.
    end = "<|im_end|>" if "<|im_end|>" in tokenizer.all_special_tokens else "no such token"
    offsets = [
        (begin, begin + len(end) if row.text.startswith(end, begin) else stop)
        for begin, stop in whole["offset_mapping"]
    ]
    return whole["input_ids"], trained_tokens(offsets, row.spans, begins).tolist()


def sentencepiece_like() -> PreTrainedTokenizerFast:
    """Words with \u2581 before the first only, unknown characters, lower case, and marks that take blanks along."""
    pieces = [("<unk>", 0.0), ("\u2581", -2.0), *((chr(at), -3.0) for at in range(33, 127))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    start, end = AddedToken("<|im_start|>", normalized=False), AddedToken("<|im_end|>", rstrip=True, normalized=False)
    backend.add_special_tokens([start, end])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|im_end|>")


@pytest.fixture(params=["bytes", "sentencepiece", "marks that take blanks before them", "no marks"])
def tokenizer(request, tiny_llama: Path, tiny_gpt_neox: Path):
    if request.param == "sentencepiece":
        return sentencepiece_like()
    if request.param == "no marks":
        return AutoTokenizer.from_pretrained(tiny_gpt_neox)
    found = copy.deepcopy(AutoTokenizer.from_pretrained(tiny_llama))
    if "before" in request.param:
        found.add_special_tokens(
            {"additional_special_tokens": [AddedToken("<|im_start|>", lstrip=True, normalized=False)]}
        )
    return found


def test_rows_are_those_of_whole_texts(tokenizer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(encode, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(encode, "SHARED", 5)
    renderer, draw = Renderer(tokenizer, TEMPLATE, (tokenizer.eos_token_id,)), random.Random(1)
    texts = [text for text in TEXTS if text != "<|im_end|>"]
    for loss_on in ("assistant", "last_assistant", "all"):
        rendered = []
        for number in range(60):
            turns = draw.randint(1, 3)
            said = [
                {"role": role, "content": draw.choice(texts) + f"x{draw.randint(0, 3)}"}
                for _ in range(turns)
                for role in ("user", "assistant")
            ]
            rendered += renderer.render(Example(tuple(said), None, number), loss_on)  # type: ignore[arg-type]
        found = list(renderer.encoder.rows(rendered))
        assert [row.source for row in found] == list(range(60))
        for row, of in zip(found, rendered, strict=True):
            assert (row.ids.tolist(), row.trained.tolist()) == of_whole_texts(tokenizer, of)


def test_what_rows_share_is_encoded_once(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    renderer = Renderer(tokenizer, TEMPLATE, (tokenizer.eos_token_id,))
    system = {"role": "system", "content": "Be brief. " * 20}
    rows = [
        Example((system, {"role": "user", "content": str(at)}, {"role": "assistant", "content": str(at)}), None, at)
        for at in range(40)
    ]
    rendered = [one for row in rows for one in renderer.render(row, "assistant")]
    characters: list[int] = []
    own = Encoder.encode
    monkeypatch.setattr(
        Encoder, "encode", lambda self, texts: (characters.append(sum(map(len, texts))), own(self, texts))[1]
    )
    found = list(renderer.encoder.rows(rendered))
    assert sum(characters) < sum(len(row.text) for row in rendered) / 3
    for row, of in zip(found, rendered, strict=True):
        assert (row.ids.tolist(), row.trained.tolist()) == of_whole_texts(tokenizer, of)


def test_an_answer_that_would_merge_with_its_prompt_is_tokenized_by_itself():
    backend = Tokenizer(models.BPE(vocab={"a": 0, ":": 1, ":a": 2, "<e>": 3, "b": 4}, merges=[(":", "a")]))
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<e>")
    renderer = Renderer(
        tokenizer,
        "{% for m in messages %}{{ m.content }}{% if m.role == 'user' %}<e>:{% else %}<e>{% endif %}{% endfor %}",
        (3,),
    )
    example = Example(({"role": "user", "content": "b"}, {"role": "assistant", "content": "a"}), None, 1)
    rendered = renderer.render(example, "assistant")
    (row,) = renderer.encoder.rows(rendered)
    assert row.ids.tolist() == [4, 3, 1, 0, 3] and row.trained.tolist() == [False] * 3 + [True] * 2
    assert row.ids.dtype == np.int32
