"""Data that cannot be meant as it is: text that the tokenizer deletes or does not know, next to nothing trained."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import make_tokenizer
from tokenizers import Regex, normalizers
from transformers import AutoTokenizer

from fitune.data.prepare import prepare
from fitune.data.render.renderer import Renderer

ROWS = [{"prompt": f"pig {number}", "completion": f"igpay {number}"} for number in range(10)]
PAIRS = [{"prompt": f"pig {n}", "chosen": f"IGPAY! {n}", "rejected": f"igpay {n}"} for n in range(10)]
JUDGED = [{"prompt": f"pig {n}", "completion": f"igpay {n}", "label": bool(n % 2)} for n in range(10)]


@pytest.fixture
def tokenizer_of(tiny_llama, tmp_path):
    """A tokenizer with something changed in its own library's object."""

    def make(change):
        folder = shutil.copytree(tiny_llama, tmp_path / "changed")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        change(tokenizer.backend_tokenizer)
        return tokenizer

    return make


def warned(tmp_path, rows, tokenizer, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    renderer = Renderer(tokenizer, tokenizer.chat_template, (tokenizer.eos_token_id,))
    return " | ".join(prepare(str(path), None, renderer=renderer, eval_share=0.0, **options).warnings)


def delete_letters(inner):
    inner.normalizer = normalizers.Replace(Regex("[a-z0-9 ]"), "")


@pytest.mark.parametrize(("rows", "reads", "count"), [(ROWS, "rows", 10), (JUDGED, "judged", 10)])
def test_a_tokenizer_that_deletes_the_text_is_told(tmp_path, tokenizer_of, tiny_llama, rows, reads, count):
    """2y: every answer came down to its end token."""
    said = warned(tmp_path, rows, tokenizer_of(delete_letters), reads=reads)
    assert f"{count} rows (" in said and "whose trained tokens are end tokens alone" in said
    assert f"{count - 1} rows have the tokens of another row, although their text differs" in said
    fine = warned(tmp_path, rows, AutoTokenizer.from_pretrained(tiny_llama), reads=reads)
    assert "alone" not in fine and "differs" not in fine and "unknown" not in fine


def test_unknown_tokens_are_told_with_their_share(tmp_path):
    """A vocabulary without most letters: what it does not know is <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<end>", "user", "assistant", "pig", "igpay", "0"]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<end>", unk_token="<unk>")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['role'] + ' ' + message['content'] + '<end>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant ' }}{% endif %}"
    )
    said = warned(tmp_path, ROWS, tokenizer)
    assert "of the tokens are unknown to the tokenizer (<unk>), in 9 rows (2, 3, 4, 5, 6, …)" in said


def test_next_to_nothing_trained_is_told(tmp_path):
    specials = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    tokenizer = make_tokenizer(specials, None, False)
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{% endif %}"
    )
    rows = [{"prompt": f"{number} " + "pig " * 400, "completion": "x"} for number in range(4)]
    said = warned(tmp_path, rows, tokenizer)
    assert "are trained" in said and "only 8 of " in said


def test_sides_of_pairs_are_looked_at_too(tmp_path, tokenizer_of):
    said = warned(tmp_path, PAIRS, tokenizer_of(delete_letters), reads="pairs")
    assert "10 rows (1, 2, 3, 4, 5, …) whose trained tokens are end tokens alone" in said
