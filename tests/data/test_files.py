"""Every bad file gives one clear error with its place; every good kind gives the same rows."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from fitune.data.read.files import read_rows
from fitune.errors import DataError

ROWS = ({"prompt": "pig", "completion": "igpay"}, {"prompt": "a, b", "completion": "ünï\ncode"})


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_every_kind_reads_the_same_rows(tmp_path: Path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    parquet.write_table(pa.Table.from_pylist(list(ROWS)), tmp_path / "a.parquet")
    names = [
        write(tmp_path / "a.jsonl", lines),
        write(tmp_path / "bom.jsonl", "\ufeff" + lines),
        write(tmp_path / "a.json", json.dumps(ROWS)),
        write(tmp_path / "b.json", json.dumps({"version": 1, "data": ROWS})),
        write(tmp_path / "a.csv", 'prompt,completion\npig,igpay\n"a, b","ünï\ncode"\n'),
        str(tmp_path / "a.parquet"),
    ]
    for name in names:
        assert read_rows(name).rows == ROWS, name


def test_a_text_file_is_a_row_a_line_and_remembers_the_line(tmp_path: Path):
    rows = read_rows(write(tmp_path / "a.txt", "one\n\n  two \n"))
    assert rows.rows == ({"text": "one"}, {"text": "  two "})
    assert rows.numbers == (1, 3)


FAULTS = {
    "empty.jsonl": ("", "is empty"),
    "blank.jsonl": (" \n\n", "is empty"),
    "bad.jsonl": ('{"a": 1}\n{"a": \n', "line 2, column 7: bad JSON"),
    "list.jsonl": ("[1, 2]\n", "line 1: a list"),
    "bad.json": ('[{"a": 1},\n {"a" 2}]', "line 2, column 7: bad JSON"),
    "number.json": ("3", "expected a list of objects"),
    "latin1.jsonl": ('{"a": "x"}\n{"a": "caf\xe9"}\n'.encode("latin1"), "byte 0xe9 on line 2"),
    "ragged.csv": ("a,b\n1,2\n1,2,3\n", "line 3: 3 values for 2 columns"),
    "empty.csv": ("a,b\n", "contains no rows"),
    "broken.parquet": (b"PAR1 nothing", "is not a complete Parquet file"),
    "rows.xlsx": ("x", "data files end in .jsonl"),
}


@pytest.mark.parametrize(("name", "content", "message"), [(name, *rest) for name, rest in FAULTS.items()])
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, message: str):
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        read_rows(path)
    assert message in str(caught.value) and name in str(caught.value)


def test_a_missing_file_names_the_nearest(tmp_path: Path):
    write(tmp_path / "train.jsonl", "{}")
    with pytest.raises(DataError, match=r'no data file at .*trian.jsonl \(did you mean "train.jsonl"\?\)'):
        read_rows(str(tmp_path / "trian.jsonl"))


def test_a_hub_set_that_cannot_be_reached_says_what_to_do():
    with pytest.raises(DataError, match="or give a file"):
        read_rows("hub:nobody/no-such-set")
