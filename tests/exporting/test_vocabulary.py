"""Tokenizers in GGUF's terms; what is read back is read by transformers' own reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fitune.errors import ModelError
from fitune.exporting.export import export
from fitune.exporting.gguf.vocabulary import LLAMA3, QWEN2, read_vocabulary

TEXTS = ("The pig eats a banana.", "In 1984, it's 3.14!", "a  b\n\n c\t", "naïve café 你好 👩", "Hello<|im_end|>there")
SENTENCES = (
    "The birch canoe slid on the smooth planks.", "Glue the sheet to the dark blue background.",
    "It's easy to tell the depth of a well.", "Translate to Pig Latin: the pig eats a banana on a string.",
)  # fmt: skip
ZEPHYR = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


@pytest.fixture
def tokenizer(tiny_llama: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_llama)


def test_every_row_has_a_token_and_a_type(tokenizer: Any):
    found = read_vocabulary(tokenizer, len(tokenizer) + 5, "<|im_end|>")
    assert found.model == "gpt2" and found.splitter == "gpt-2"
    assert len(found.tokens) == len(found.types) == len(tokenizer) + 5
    by_text = dict(zip(found.tokens, found.types, strict=True))
    assert by_text["<|im_start|>"] == TokenType.CONTROL
    assert by_text["a"] == TokenType.NORMAL
    assert by_text[f"[PAD{len(tokenizer)}]"] == TokenType.UNUSED
    assert found.special_ids["eos"] == found.special_ids["eot"] == tokenizer.eos_token_id
    assert found.template == tokenizer.chat_template
    assert not found.add_bos  # <|im_start|> is the template's own first mark, not put before plain text


def test_added_words_that_are_not_special_are_marked_so(tokenizer: Any):
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    found = read_vocabulary(tokenizer, len(tokenizer))
    assert found.types[-1] == TokenType.USER_DEFINED


def test_more_tokens_than_rows(tokenizer: Any):
    with pytest.raises(ModelError, match="380 tokens and the model 379 embedding rows"):
        read_vocabulary(tokenizer, 379)


def byte_level(use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def split(pattern: str) -> Any:
    return pre_tokenizers.Split(Regex(pattern), "isolated")


@pytest.mark.parametrize(
    ("splitter", "ignores_merges", "name"),
    [
        (byte_level(True), False, "gpt-2"),
        (pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level(True)]), False, "smollm"),
        (pre_tokenizers.Sequence([split(LLAMA3), byte_level(False)]), True, "llama-bpe"),
        (pre_tokenizers.Sequence([split(QWEN2), byte_level(False)]), False, "qwen2"),
    ],
)
def test_splitters_have_llama_cpps_names(tokenizer: Any, splitter: Any, ignores_merges: bool, name: str):
    tokenizer.backend_tokenizer.pre_tokenizer = splitter
    tokenizer.backend_tokenizer.model.ignore_merges = ignores_merges
    assert read_vocabulary(tokenizer, len(tokenizer)).splitter == name


@pytest.mark.parametrize(
    "splitter",
    [
        pre_tokenizers.Whitespace(),
        pre_tokenizers.Sequence([split(r"\w+"), byte_level(False)]),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Sequence([split(LLAMA3), byte_level(False)]),  # and merges not ignored: llama.cpp would
    ],
)
def test_a_splitter_that_llama_cpp_may_not_share_is_refused(tokenizer: Any, splitter: Any):
    tokenizer.backend_tokenizer.pre_tokenizer = splitter
    with pytest.raises(ModelError, match=r"llama\.cpp"):
        read_vocabulary(tokenizer, len(tokenizer))


def test_bos_follows_the_chat_template(tiny_model: Callable[..., Path]):
    end = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    adds = AutoTokenizer.from_pretrained(tiny_model("llama", specials=end, template=ZEPHYR, adds_bos=True))
    found = read_vocabulary(adds, len(adds))
    assert not found.add_bos and "adds none" in found.notes[0]  # a chat was trained without one
    adds.chat_template = "{{ bos_token }}" + ZEPHYR
    assert read_vocabulary(adds, len(adds)).add_bos
    adds.chat_template = None
    assert read_vocabulary(adds, len(adds)).add_bos


def sentencepiece_like(legacy: bool) -> Any:
    """Llama 2's kind: BPE with byte fallback, blanks as ▁, which legacy tokenizers put before every piece of text."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=200, show_progress=False))
    learnt, tokens = learner.get_vocab(), ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += sorted((token for token in learnt if token not in tokens), key=learnt.__getitem__)
    vocab = {token: at for at, token in enumerate(tokens)}
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    inner = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if legacy:
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="</s>"
    )
    tokenizer.chat_template = ZEPHYR
    return tokenizer


def test_sentencepiece_vocabulary(tiny_model: Callable[..., Path], tmp_path: Path):
    tokenizer = sentencepiece_like(legacy=True)
    found = read_vocabulary(tokenizer, len(tokenizer))
    assert (found.model, found.merges, found.add_space_prefix) == ("llama", (), True)
    assert found.types[3] == TokenType.BYTE and found.types[0] == TokenType.UNKNOWN
    # The first merge has the highest score: llama.cpp joins by score.
    merged = [(score, text) for score, text, kind in zip(found.scores, found.tokens, found.types, strict=True)
              if kind == TokenType.NORMAL and len(text) > 1]  # fmt: skip
    assert merged == sorted(merged, key=lambda pair: -pair[0])
    folder = Path(shutil.copytree(tiny_model("llama", spare_rows=200), tmp_path / "base"))
    tokenizer.save_pretrained(folder)
    done = export(str(folder), "gguf", tmp_path / "out", num_prompts=2)
    assert done.report.prompts_same == 2  # llama.cpp's own ids
    again = AutoTokenizer.from_pretrained(str(done.main.parent), gguf_file=done.main.name)
    for text in TEXTS:
        ids = [one(text, add_special_tokens=False)["input_ids"] for one in (again, tokenizer)]
        assert ids[0] == ids[1]


def test_a_blank_before_a_text_but_not_after_a_special_token_is_refused():
    tokenizer = sentencepiece_like(legacy=False)
    with pytest.raises(ModelError, match=r"llama\.cpp knows both or none"):
        read_vocabulary(tokenizer, len(tokenizer))
