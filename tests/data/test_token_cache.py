"""Kept tokens are the tokens, and nothing stale is ever taken."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fitune.data.examples import Example
from fitune.data.render import token_cache
from fitune.data.render.encode import Encoder
from fitune.data.render.renderer import Renderer
from fitune.data.render.token_cache import tokenize_kept

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(token_cache, "FEWEST_ROWS", 3)
    return tmp_path / "tokens"


@pytest.fixture
def renderer(tiny_llama: Path) -> Renderer:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    return Renderer(tokenizer, TEMPLATE, (tokenizer.eos_token_id,))


def rendered(renderer: Renderer, answers=("one", "two words", "", "ähm ✓"), first: int = 5):
    turns = [
        ({"role": "user", "content": f"say {answer}"}, {"role": "assistant", "content": answer}) for answer in answers
    ]
    examples = [Example(messages, None, first + at) for at, messages in enumerate(turns)]
    return [row for example in examples for row in renderer.render(example, "all")]


def without_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self, texts):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(Encoder, "encode", fail)


def test_the_second_time_no_row_is_tokenized(cache: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch):
    expected = list(renderer.tokenize(rendered(renderer)))
    assert tokenize_kept(renderer, rendered(renderer)) == expected and len(list(cache.iterdir())) == 1
    without_a_tokenizer(monkeypatch)
    assert tokenize_kept(renderer, rendered(renderer)) == expected
    # Where a row stands in its file is not what its tokens depend on.
    assert [row.row_number for row in tokenize_kept(renderer, rendered(renderer, first=70))] == [70, 71, 72, 73]


def test_another_text_span_or_tokenizer_is_another_entry(cache: Path, renderer: Renderer, tiny_gpt_neox: Path):
    rows = rendered(renderer)
    tokenize_kept(renderer, rows)
    other = [*renderer.render(Example(({"role": "user", "content": "x"},), None, 1), "all"), *rows[1:]]
    untrained = [type(rows[0])(row.text, ((0, 3),), row.row_number) for row in rows]
    tokenizer = AutoTokenizer.from_pretrained(tiny_gpt_neox)
    tokenizer.add_tokens(["ähm"])
    for which, what in ((renderer, other), (renderer, untrained), (Renderer(tokenizer, TEMPLATE), rows)):
        assert tokenize_kept(which, what) == list(which.tokenize(what))
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_file_is_made_again(cache: Path, renderer: Renderer):
    expected = list(renderer.tokenize(rendered(renderer)))
    tokenize_kept(renderer, rendered(renderer))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no rows", whole + b"more"):
        file.unlink()  # a file that is mapped is never written to
        file.write_bytes(damaged)
        assert tokenize_kept(renderer, rendered(renderer)) == expected
        assert file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_no_fault(cache: Path, renderer: Renderer):
    cache.write_text("a file where the folder should be")
    assert tokenize_kept(renderer, rendered(renderer)) == list(renderer.tokenize(rendered(renderer)))


def test_few_rows_are_not_kept_and_old_files_go(cache: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch):
    tokenize_kept(renderer, rendered(renderer, answers=("a", "b")))
    assert not cache.exists()
    tokenize_kept(renderer, rendered(renderer, answers=("a",) * 3))
    monkeypatch.setattr(token_cache, "KEPT_BYTES", int(2.5 * sum(file.stat().st_size for file in cache.iterdir())))
    for word in "bcd":
        tokenize_kept(renderer, rendered(renderer, answers=(word,) * 3))
    assert len(list(cache.iterdir())) == 2


def test_rows_are_tokenized_piece_by_piece_and_mapped(cache: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(token_cache, "PIECE_CHARACTERS", 450)  # two rows
    rows = rendered(renderer, answers=("one", "two words", "", "ähm ✓", "five"))
    kept = tokenize_kept(renderer, rows)
    assert kept == list(renderer.tokenize(rows)) and len(list(cache.iterdir())) > 1
    ids, trained = kept[3].arrays
    assert not ids.flags.writeable and not ids.flags.owndata and not trained.flags.owndata
    assert kept[-1].row_number == 9 and [row.row_number for row in kept[1:3]] == [6, 7]
    assert kept.lengths.tolist() == [row.num_tokens for row in kept]
    monkeypatch.setattr(token_cache, "LONGER_EVERY", 1)  # later pieces are longer
    assert tokenize_kept(renderer, rows) == kept
