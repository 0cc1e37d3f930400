"""Data: checked by the command, shown token by token; dropped files go to the data folder and nowhere else."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient
from studio_runs import OWN_PAGE, answers

from fitune.data.reports.counting import histogram
from fitune.studio.confine import Folders

REPORT = {
    "name": "<b>a.jsonl", "form": "messages", "loss_on": "assistant", "rows": 2, "tokens": 10, "trained_tokens": 4, "shortest": 3,
    "median": 5, "longest": 7, "max_length": 9, "duplicate_rows": 1, "errors": [], "warnings": ["<i>odd"],
    "lengths": {"edges": [3, 5, 8], "rows": [1, 1]}, "read": {"columns_used": ["messages"], "columns_unused": ["<u>"], "notes": []},
}  # fmt: skip
TOKENS = [{"text": "<s>", "id": 1, "trained": False}, {"text": " pay\n", "id": 2, "trained": True}]


def test_a_check_and_its_rows(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    rows = [{"row": 1, "tokens": TOKENS}]
    asked = answers(monkeypatch, json.dumps({"ok": True, "train": REPORT}), json.dumps(rows))
    text = client.post("/data/check", data={"source": "a.jsonl", "data.max_length": "9"}, headers=OWN_PAGE).text
    assert asked[0] == ["data", "check", "--json", "--data.max_length=9", "--", "a.jsonl"] and asked[1][:3] == [
        "data",
        "show",
        "--json",
    ]
    assert "<b>" not in text and "<i>" not in text and "<u>" not in text and "<s>" not in text
    assert 'class="t trained"' in text and "·pay↵" in text and "the first 1 are the prompt" in text
    assert "Recognised as <strong>messages" in text and text.count('class="bar"') == 2


def test_what_is_wrong_with_a_file_is_told(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    answers(monkeypatch, "error: a.jsonl: row 3 is no object", status=1)
    assert "row 3 is no object" in client.post("/data/check", data={"source": "a.jsonl"}, headers=OWN_PAGE).text


@pytest.mark.parametrize("source", ["/etc/passwd", "../x.jsonl", "~/x", "", "recipe.yaml", "a.jsonl,/etc/shadow"])
def test_only_opened_files_are_read(client: TestClient, monkeypatch: pytest.MonkeyPatch, source: str):
    asked = answers(monkeypatch, "{}")
    assert 'class="bad' in client.post("/data/check", data={"source": source}, headers=OWN_PAGE).text and asked == []


def test_a_dropped_file_goes_to_the_data_folder(client: TestClient, folders: Folders):
    assert client.put("/data/files/a.jsonl", content=b"{}\n", headers=OWN_PAGE).json() == {"name": "data/a.jsonl"}
    assert (folders.data / "a.jsonl").read_bytes() == b"{}\n" and len(list(folders.data.iterdir())) == 1
    assert client.put("/data/files/a.jsonl", content=b"other", headers=OWN_PAGE).status_code == 409
    assert 'value="data/a.jsonl"' in client.get("/data").text


@pytest.mark.parametrize(
    "name", ["..%2fup.jsonl", "%2e%2e", ".hidden.jsonl", "a.py", "a.yaml", "a%00.jsonl", "x/y.jsonl"]
)
def test_no_other_file_is_written(client: TestClient, folders: Folders, name: str):
    assert client.put(f"/data/files/{name}", content=b"x", headers=OWN_PAGE).status_code in (400, 404, 405)
    assert not folders.data.exists() and not list(folders.runs.parent.glob("*.jsonl"))
    assert client.put("/data/files/a.jsonl", content=b"x").status_code == 403


def test_a_data_folder_that_cannot_be_written(client: TestClient, folders: Folders):
    folders.data.write_text("a file in its place")
    answer = client.put("/data/files/a.jsonl", content=b"x", headers=OWN_PAGE)
    assert answer.status_code == 403 and "cannot be written" in answer.text


@pytest.mark.parametrize("lengths", [[], [5], [1, 2, 3], list(range(10, 1000)), [7] * 9])
def test_histograms_count_every_row(lengths: list[int]):
    found = histogram(lengths)
    assert sum(found["rows"]) == len(lengths) and len(found["rows"]) <= 24
    assert len(found["edges"]) == (len(found["rows"]) + 1 if lengths else 0)
    assert not lengths or (found["edges"][0] == min(lengths) and found["edges"][-1] > max(lengths))
