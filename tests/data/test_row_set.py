"""Rows that stay in their files give the tokens, reports and examples of rows in memory, in a bounded memory."""

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fitune.data import row_set
from fitune.data.prepare import prepare
from fitune.data.read.files import first_rows, read_rows
from fitune.data.read.formats import large_files
from fitune.data.read.sources import PreparedData
from fitune.data.read.stored_rows import LineRows, PartRows
from fitune.data.render import token_cache
from fitune.data.render.renderer import Renderer
from fitune.errors import DataError


@pytest.fixture(scope="module")
def renderer(tiny_llama: Path) -> Renderer:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    return Renderer(tokenizer, tokenizer.chat_template, (tokenizer.eos_token_id,))


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file counts as large, and pieces hold a few rows."""
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(large_files, "LARGE_BYTES", 0)
    monkeypatch.setattr(row_set, "FEWEST_ROWS", 1)
    monkeypatch.setattr(token_cache, "PIECE_CHARACTERS", 2_000)


def rows(count: int, seed: int = 1) -> list[dict]:
    draw = random.Random(seed)
    made = []
    for at in range(count):
        turns = [
            {"role": role, "content": f"{at} " + "pig " * draw.randint(1, 9)}
            for _ in range(draw.randint(1, 2))
            for role in ("user", "assistant")
        ]
        made.append({"messages": turns, "id": at} if draw.random() < 0.9 else {"messages": turns})
    return [*made, made[0]]


def write(path: Path, made: list[dict]) -> str:
    text = "".join(json.dumps(row) + "\n" + "\n" * (at % 5 == 2) for at, row in enumerate(made))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif path.suffix == ".zst":
        import pyarrow as pa

        with pa.CompressedOutputStream(pa.OSFile(str(path), "wb"), "zstd") as stream:
            stream.write(text.encode())
    elif path.suffix in (".parquet", ".arrow"):
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.Table.from_pylist(made)
        if path.suffix == ".parquet":
            parquet.write_table(table, path, row_group_size=7)
        else:
            with pa.ipc.new_file(str(path), table.schema) as writer:
                writer.write_table(table)
    else:
        path.write_text(text)
    return str(path)


def content(data: PreparedData) -> tuple:
    facts = data.train_read.to_dict() if data.train_read else {}
    facts["columns_unused"] = sorted(facts["columns_unused"])
    return (
        list(data.train), list(data.eval), list(data.train_examples), list(data.eval_examples), data.train_report,
        data.eval_report, data.hashes, facts, data.warnings, data.thinking,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet", "a.arrow"])
def test_a_large_file_is_what_it_is_when_small(
    name: str, tmp_path: Path, renderer: Renderer, request: pytest.FixtureRequest
):
    path = write(tmp_path / name, rows(40))
    options = {"eval_share": 0.2, "max_length": 110, "too_long": "drop"}
    small = content(prepare(path, None, renderer=renderer, **options))
    request.getfixturevalue("large")
    assert isinstance(read_rows(path).rows, LineRows | PartRows)
    first, again = (content(prepare(path, None, renderer=renderer, **options)) for _ in range(2))
    assert first == small and again == small
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) > 2


def test_weights_and_several_files_of_stored_rows(tmp_path: Path, renderer: Renderer, request: pytest.FixtureRequest):
    one, other = write(tmp_path / "a.jsonl", rows(20)), write(tmp_path / "b.jsonl", rows(9, seed=2))
    name = f"{one}*1.5, {other}*0.5"
    small = content(prepare(name, other, renderer=renderer))
    request.getfixturevalue("large")
    assert content(prepare(name, other, renderer=renderer)) == small


@pytest.mark.usefixtures("large")
def test_what_is_no_plain_layout_is_read_as_before(tmp_path: Path):
    apart = tmp_path / "a.jsonl"
    apart.write_text('{"text":\n "a"}\n{"text": "b"} {"text": "c"}\n')
    assert [row["text"] for row in read_rows(str(apart)).rows] == ["a", "b", "c"]
    marked = tmp_path / "b.jsonl"
    marked.write_bytes(b'\xef\xbb\xbf{"text": "a"}\n\xef\xbb\xbf{"text": "b"}\r\n')
    found = read_rows(str(marked))
    assert [row["text"] for row in found.rows] == ["a", "b"] and "byte order mark" in found.notes[0]
    wide = tmp_path / "c.jsonl"
    wide.write_bytes('{"text": "a"}'.encode("utf-16"))
    assert read_rows(str(wide)).encoding == "utf-16"
    for broken, said in (('{"text": "a"}\n{"text": \n', "line 2"), ('{"text": "a", "text": "b"}\n', "text")):
        (tmp_path / "d.jsonl").write_text(broken)
        with pytest.raises(DataError, match=said):
            read_rows(str(tmp_path / "d.jsonl"))


@pytest.mark.usefixtures("large")
def test_the_first_rows_say_what_a_file_holds(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", rows(5))
    assert [row["messages"] for row in first_rows(path)] == [row["messages"] for row in rows(5)]


@pytest.mark.usefixtures("large")
def test_faults_are_those_of_all_rows(tmp_path: Path, renderer: Renderer):
    bad = [{"messages": [{"role": "usr", "content": "a"}]}, {"messages": [{"role": "user", "content": "a"}]}]
    path = write(tmp_path / "a.jsonl", [*rows(6), *bad])
    with pytest.raises(
        DataError, match=r"2 of 9 rows cannot be used(.|\n)*row 9: the role \"usr\"(.|\n)*row 11 has no answer"
    ):
        prepare(path, None, renderer=renderer)


def test_bad_rows_are_dropped_where_it_is_asked_for_and_named(tmp_path: Path, renderer: Renderer):
    bad = [
        {"messages": [{"role": "usr", "content": "a"}]},
        {"messages": 3},
        {"messages": [{"role": "user", "content": "a"}]},
    ]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows(4), *bad]))
    found = prepare(str(path), None, renderer=renderer, bad_rows="drop")
    assert len(found.train_examples) == 5 and found.train_report.rows == 5
    assert found.train_read is not None and sorted(n for held in found.train_read.left_out.values() for n in held) == [
        6,
        7,
        8,
    ]
    assert any(
        '1 row (6) left out: the role "usr" is unknown' in said and "data.bad_rows: drop" in said
        for said in found.warnings
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in bad))
    with pytest.raises(DataError, match="no row is left to train on"):
        prepare(str(path), None, renderer=renderer, bad_rows="drop")


def test_rows_that_the_template_refuses_are_dropped_too(tmp_path: Path, renderer: Renderer):
    strict = (
        "{% for m in messages %}{% if m.content == 'no' %}{{ raise_exception('not this') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    refusing = Renderer(renderer.tokenizer, strict, renderer.end_ids)
    kinds = {
        "rows": [{"prompt": text, "completion": "b"} for text in ("yes", "no", "yes too")],
        "pairs": [{"prompt": text, "chosen": "b", "rejected": "c"} for text in ("yes", "no", "yes too")],
        "judged": [{"prompt": text, "completion": "b", "label": True} for text in ("yes", "no", "yes too")],
        "prompts": [{"prompt": text} for text in ("yes", "no", "yes too")],
    }
    for kind, made in kinds.items():
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
        with pytest.raises(DataError, match=r"row 2: .*not this"):
            prepare(str(path), None, renderer=refusing, reads=kind)
        found = prepare(str(path), None, renderer=refusing, reads=kind, bad_rows="drop")
        assert len(found.train) == 2 and any("1 row (2) left out" in said for said in found.warnings), kind


@pytest.mark.slow
@pytest.mark.usefixtures("large")
def test_memory_hardly_grows_with_the_file(tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch):
    """As Python and numpy see it. Rows, texts and tokens held whole take several times what the file grows by."""
    monkeypatch.setattr(token_cache, "PIECE_CHARACTERS", 30_000)
    monkeypatch.setattr(token_cache, "LONGER_EVERY", 10_000)

    def peak_bytes(count: int) -> tuple[int, int]:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as file:
            for at in range(count):
                said = {"user": f"{at} " + "pig " * 2_900, "assistant": "igpay " * 60}
                turns = [{"role": role, "content": text} for role, text in said.items()]
                file.write(json.dumps({"messages": turns}) + "\n")
        tracemalloc.start()
        try:
            assert len(prepare(str(path), None, renderer=renderer).train) == count
            return tracemalloc.get_traced_memory()[1], path.stat().st_size
        finally:
            tracemalloc.stop()

    peak_bytes(10)  # what is imported and compiled once
    (few, small), (many, big) = peak_bytes(80), peak_bytes(400)
    assert many - few < (big - small) / 2
