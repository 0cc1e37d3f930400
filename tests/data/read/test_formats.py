"""Formats of files: what is sure is read, the rest is refused with place, cause and remedy."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from fitune.data.read.files import Rows, read_rows
from fitune.errors import DataError

ROWS = ({"prompt": "pig", "completion": "ünï\ncode"}, {"prompt": "dog", "completion": "ogday"})
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


def of(path: Path, content: str | bytes) -> Rows:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_rows(str(path))


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("ending", "pack"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]
)
def test_compressed_files(tmp_path: Path, ending: str, pack: Any):
    packed = pack(LINES.encode())
    assert of(tmp_path / f"a.jsonl.{ending}", packed).rows == ROWS
    for broken in (packed[:-9], b"no such thing"):
        with pytest.raises(
            DataError, match=rf"a.jsonl.{ending} cannot be unpacked .*it is damaged, or no .{ending} file"
        ):
            of(tmp_path / f"a.jsonl.{ending}", broken)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "txt"])
def test_encodings_with_a_mark_are_read(tmp_path: Path, encoding: str, ending: str):
    written = {
        "jsonl": LINES,
        "json": json.dumps(ROWS, ensure_ascii=False),
        "csv": 'prompt,completion\npig,"ünï\ncode"\ndog,ogday\n',
        "tsv": 'prompt\tcompletion\npig\t"ünï\ncode"\ndog\togday\n',
        "txt": "ünï\n",
    }[ending]
    rows = of(tmp_path / f"a.{ending}", written.encode(encoding))
    assert rows.rows == (ROWS if ending != "txt" else ({"text": "ünï"},))
    assert rows.encoding == encoding.removesuffix("-sig")


@pytest.mark.parametrize("encoding", ["utf-16le", "utf-16be"])
def test_utf16_without_its_mark_is_refused_with_the_command(tmp_path: Path, encoding: str):
    with pytest.raises(DataError, match=f"looks like {encoding} without its mark; .*iconv -f {encoding} -t utf-8"):
        of(tmp_path / "a.jsonl", LINES.encode(encoding))


@pytest.mark.parametrize(("text", "encoding"), [("naïve café, señor", "cp1252"), ("привет, как дела", "cp1251")])
def test_another_encoding_is_proposed_with_how_the_line_reads(tmp_path: Path, text: str, encoding: str):
    with pytest.raises(DataError) as caught:
        of(tmp_path / "a.txt", f"first\n{text}\n".encode(encoding))
    assert "on line 2" in str(caught.value) and text in str(caught.value) and "iconv -f" in str(caught.value)


COLUMNS = {key: [row[key] for row in ROWS] for key in ROWS[0]}
WRITTEN = {
    "pretty": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "glued": "".join(json.dumps(row) for row in ROWS),
    "a list": json.dumps(ROWS, indent=1),
    "joined files": "\ufeff".join(json.dumps(row) + "\n" for row in ROWS),
}


@pytest.mark.parametrize("ending", ["json", "jsonl"])
@pytest.mark.parametrize("way", WRITTEN)
def test_objects_are_read_however_they_follow_each_other(tmp_path: Path, way: str, ending: str):
    rows = of(tmp_path / f"a.{ending}", WRITTEN[way])
    assert rows.rows == ROWS
    assert rows.notes or (way, ending) == ("a list", "json")


@pytest.mark.parametrize(
    "document",
    [
        {"data": ROWS, "version": 2},
        COLUMNS,
        {key: {"0": column[0], "1": column[1]} for key, column in COLUMNS.items()},
        {"0": ROWS[0], "1": ROWS[1]},
        {"columns": list(COLUMNS), "index": [0, 1], "data": [list(row.values()) for row in ROWS]},
        {"schema": {"fields": []}, "data": ROWS},
    ],
    ids=["wrapped", "pandas list", "pandas columns", "pandas index", "pandas split", "pandas table"],
)
def test_documents_that_hold_rows(tmp_path: Path, document: Any):
    rows = of(tmp_path / "a.json", json.dumps(document))
    assert rows.rows == ROWS and rows.notes


def test_a_single_row_is_not_taken_for_what_its_lists_hold(tmp_path: Path):
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "tags": ["x", "y"]}
    assert of(tmp_path / "a.json", json.dumps(talk)).rows == (talk,)
    assert of(tmp_path / "b.json", json.dumps({**talk, "tags": []})).rows == ({**talk, "tags": []},)
    assert of(tmp_path / "c.json", json.dumps({"messages": talk["messages"]})).rows == ({"messages": talk["messages"]},)


BAD: dict[str, tuple[str | bytes, str]] = {
    "splits.json": (
        json.dumps({"train": ROWS, "test": ROWS}),
        "several lists of objects (train, test); keep one a file",
    ),
    "unsure.json": (
        json.dumps({"a": {"b": 1}, "c": {"b": 2}}),
        "rows are not told from columns; write a list of objects",
    ),
    "key.jsonl": ('{"a": 1}\n{"a": 1, "b": 2, "a": 3}\n', 'from line 2: bad JSON (the key "a" stands twice'),
    "long.jsonl": ('{"a": 1}\n{"a": ' + "9" * 5000 + "}", "from line 2: bad JSON (a number with thousands of digits"),
    "deep.json": ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deep"),
    "cut.jsonl": ('{"a": 1}\n{"a": "b', "line 2, column 7: bad JSON"),
    "later.jsonl": ('{"a":\n1}\n{"b": 2\n', "line 4, column 1: bad JSON"),
    "mixed.jsonl": ('{"a": 1}\n3\n', "line 2: a int; a row is an object"),
    "short.csv": ("a,b,c\n1,2\n", "line 2: 2 values for 3 columns; quote values that contain commas"),
    "semicolons.csv": ("a;b\n1;2;3\n", "line 2: 3 values for 2 columns; quote values that contain semicolons"),
    "open.csv": ('a,b\n1,"2\n', "bad CSV (unexpected end of data)"),
    "names.csv": ("a, a ,b\n1,2,3\n", 'the column "a" stands 2 times in the header'),
    "damaged.arrow": (b"ARROW1 nothing", "is not a complete Arrow file"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_sure_is_refused_with_its_place(tmp_path: Path, name: str):
    content, says = BAD[name]
    with pytest.raises(DataError) as caught:
        of(tmp_path / name, content)
    assert says in str(caught.value) and name in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolon.csv", "sep=;\r\nprompt;completion\r\npig;igpay\r\n"),
        ("tab.csv", "prompt\tcompletion\npig\tigpay\n"),
        ("bar.csv", "prompt|completion\npig|igpay\n"),
        ("comma.tsv", "prompt,completion\npig,igpay\n"),
        ("twice.csv", "prompt,completion\npig,igpay\nprompt,completion\n"),
        ("blank.csv", " prompt , completion\n\npig,igpay\n\n"),
    ],
)
def test_tables_however_they_are_divided(tmp_path: Path, name: str, content: str):
    assert of(tmp_path / name, content).rows == ({"prompt": "pig", "completion": "igpay"},)


def test_commas_in_cells_do_not_divide_a_table_of_semicolons(tmp_path: Path):
    rows = of(tmp_path / "a.csv", 'prompt;completion\n"a;b, c";d, e\n').rows
    assert rows == ({"prompt": "a;b, c", "completion": "d, e"},)


def test_a_long_cell_is_read_and_the_limit_of_the_csv_module_stays(tmp_path: Path):
    import csv

    before = csv.field_size_limit()
    assert len(of(tmp_path / "a.csv", f"text\n{'x' * 300_000}\n").rows[0]["text"]) == 300_000
    assert csv.field_size_limit() == before


def test_arrow_files_streams_and_saved_folders(tmp_path: Path):
    table = pa.Table.from_pylist(list(ROWS))
    for name, make in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with make(str(tmp_path / name), table.schema) as writer:
            writer.write_table(table)
        assert read_rows(str(tmp_path / name)).rows == ROWS
    Dataset.from_list(list(ROWS)).save_to_disk(str(tmp_path / "saved"))
    saved = read_rows(str(tmp_path / "saved"))
    assert saved.rows == ROWS and len(saved.sha256) == 64
    DatasetDict({"train": Dataset.from_list(list(ROWS))}).save_to_disk(str(tmp_path / "splits"))
    assert read_rows(str(tmp_path / "splits")).rows == ROWS
    with pytest.raises(DataError, match=r"has no split test; set data.hub_split to one of train"):
        read_rows(str(tmp_path / "splits"), "test")


def test_null_fields_that_parquet_adds_to_objects_are_absent(tmp_path: Path):
    calls = [{"name": "a", "arguments": {"x": 1}}, {"name": "b", "arguments": {"y": "2"}}]
    parquet.write_table(pa.Table.from_pylist([{"calls": calls, "note": None}]), tmp_path / "a.parquet")
    rows = read_rows(str(tmp_path / "a.parquet"))
    assert rows.rows == ({"calls": calls, "note": None},)
    assert "null are taken for absent" in rows.notes[0]


def test_maps_of_parquet_are_objects(tmp_path: Path):
    table = pa.table({"input": pa.array([[("k", 1)]], type=pa.map_(pa.string(), pa.int64()))})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_rows(str(tmp_path / "a.parquet")).rows == ({"input": {"k": 1}},)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    for name in ("pipe.jsonl", "loop.jsonl"):
        with pytest.raises(DataError, match=f"{name} is no file to be read: it is a pipe, a device, or a link"):
            read_rows(str(tmp_path / name))


def test_text_of_carriage_returns_alone_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="carriage returns and no line feeds, so that it is one line; convert it: tr "):
        of(tmp_path / "a.txt", "one\rtwo")
    assert [row["text"] for row in of(tmp_path / "b.txt", "one\r\ntwo\r\n").rows] == ["one", "two"]


def test_a_folder_of_files(tmp_path: Path):
    for name in ("b.jsonl", "a.jsonl.gz"):
        content = LINES.encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (tmp_path / "README.md").write_text("words")
    rows = read_rows(str(tmp_path))
    assert rows.rows == ROWS + ROWS and rows.numbers == (1, 2, 3, 4)
    assert rows.place(3) == " (b.jsonl, row 1)"
    assert rows.notes == ("not read, since they are no data files: README.md",)
    (tmp_path / "my-test.jsonl").write_text(LINES)
    with pytest.raises(DataError, match=r"for training and for testing \(my-test.jsonl\); name them one by one"):
        read_rows(str(tmp_path))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"is a folder without data files; they end in .jsonl"):
        read_rows(str(tmp_path / "empty"))
