"""The tokenizer beside the model's embedding: every id that can be met has a row, or it is said before anything else."""

from __future__ import annotations

import json

import pytest
from conftest import SMOLLM2_SPECIALS, make_model_folder

import fitune
from fitune.errors import ModelError
from fitune.models.load_config import load_config
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import check_vocabulary, load_tokenizer


def checked(folder, **added):
    source = resolve(str(folder))
    tokenizer = load_tokenizer(source)
    if added:
        tokenizer.add_special_tokens(added)
    check_vocabulary(tokenizer, load_config(source), resolve_template(tokenizer))
    return tokenizer


def test_a_token_without_an_embedding_row_is_refused_before_the_data_is_read(tmp_path, settings_of):
    """K01: one row fewer than tokens, and the last token is one that text gives."""
    folder = make_model_folder(tmp_path / "short", "llama", spare_rows=-1)
    rows = json.loads((folder / "config.json").read_text())["vocab_size"]
    words = rf"tokens up to id {rows} and the model {rows} embedding rows: there is no row for .* \({rows}\)"
    with pytest.raises(ModelError, match=words):
        checked(folder)
    with pytest.raises(ModelError, match=words):
        fitune.train(settings_of(model__name=str(folder), data__train="not-there.jsonl"))
    with pytest.raises(ModelError, match=words):
        fitune.open_target(str(folder))


def test_spare_rows_and_tokens_that_come_with_the_template_are_no_fault(tiny_llama, tiny_gpt_neox):
    checked(tiny_llama)
    checked(tiny_gpt_neox)


def test_an_added_token_that_nobody_uses_is_no_fault(tiny_llama):
    """Gemma 3's text models know <image_soft_token>, one id beyond their embedding."""
    checked(tiny_llama, additional_special_tokens=["<image_soft_token>"])


def test_a_pad_token_without_a_row_gives_way(tiny_llama):
    tokenizer = checked(tiny_llama, pad_token="[PAD]")
    assert tokenizer.pad_token == SMOLLM2_SPECIALS["eos_token"]
