"""Result and Will it fit: chat that streams, exports with their report, grids and what goes furthest."""

from __future__ import annotations

import json
import sys
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient
from studio_runs import OWN_PAGE, MakeRun, answers

from fitune.studio.starting import chat_child
from fitune.studio.views.plan_pieces import grid_values

FIDELITY = {
    "reference": "the run", "prompts": 2, "tokens": 9, "arithmetic": "fp32",
    "rows": [{"copy": "<b>", "largest": 0.1, "mean": 0.01, "divergence": 1e-6, "tokens_same": 1.0, "answers_same": 1.0}],
}  # fmt: skip
CHILD = """
import json, sys
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if "top" in asked:
        print(json.dumps({"done": True, "steps": [[{"token": "<b>", "probability": 0.5}]]}), flush=True)
        continue
    for piece in ("<i>", asked.get("side", "")):
        print(json.dumps({"piece": piece}), flush=True)
    print(json.dumps({"done": True, "text": "<i>" + asked.get("side", ""), "stopped": True}), flush=True)
"""


def result_run(make_run: MakeRun, name: str = "one"):
    path = make_run(name)
    (path / "adapter").mkdir()
    return path


def test_the_result_of_a_run(client: TestClient, make_run: MakeRun):
    path = result_run(make_run)
    (path / "export" / "gguf").mkdir(parents=True)
    (path / "export" / "gguf" / "fidelity.json").write_text(json.dumps(FIDELITY))
    (path / "export" / "bad").mkdir()
    (path / "export" / "bad" / "fidelity.json").write_text("{")
    text = client.get("/result/one").text
    assert "<mark>ethay</mark>" in text and "50 %" in text and "exact match" in text and "the run" in text
    assert "<b>" not in text and "fitune adapters merge one" in text
    make_run("none")
    assert "Message" not in client.get("/result/none").text


def test_base_and_adapter_answer_one_after_the_other(
    client: TestClient, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
):
    path = result_run(make_run)
    asked: list[list[str]] = []
    monkeypatch.setattr(chat_child, "command", lambda words: asked.append(words) or [sys.executable, "-c", CHILD])
    for _ in range(2):
        answer = client.post("/chat/one", data={"text": "hello", "side": "both"}, headers=OWN_PAGE)
        lines = [json.loads(line) for line in answer.text.splitlines()]
        assert [line["side"] for line in lines if line.get("done")] == ["base", "adapter"]
        assert [line["text"] for line in lines if line.get("done")] == ["<i>base", "<i>adapter"]
    assert len(asked) == 1 and asked[0][:3] == ["chat", str(path), "--json"]
    plain = client.post("/chat/one", data={"text": "hello"}, headers={**OWN_PAGE, "sec-fetch-mode": "navigate"}).text
    assert "&lt;i&gt;base" in plain and "<i>" not in plain
    views = client.post("/tokens/one", data={"text": "The", "side": "base"}, headers=OWN_PAGE).text
    assert "50.0 %" in views and "<b>" not in views


def test_a_model_that_cannot_be_loaded_says_why(client: TestClient, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    result_run(make_run)
    code = "import sys; sys.exit('error: its base is gone')"
    monkeypatch.setattr(chat_child, "command", lambda words: [sys.executable, "-c", code])
    answer = client.post("/chat/one", data={"text": "hello"}, headers=OWN_PAGE)
    assert json.loads(answer.text)["error"] == "its base is gone"


@pytest.mark.parametrize("body", [{"text": ""}, {"text": "a", "side": "other"}, {"text": "x" * 30_000}])
def test_messages_that_are_none(client: TestClient, make_run: MakeRun, body: dict[str, str]):
    result_run(make_run)
    assert client.post("/chat/one", data=body, headers=OWN_PAGE).status_code == 400


def test_an_export_and_its_report(client: TestClient, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch):
    path = result_run(make_run)
    asked = answers(monkeypatch, json.dumps({"folder": "f", "main": "<b>f", "bytes": 2**20, "fidelity": FIDELITY}))
    text = client.post("/export/one", data={"form": "gguf", "type": "q8_0"}, headers=OWN_PAGE).text
    assert (
        asked == [["export", str(path), "--to=gguf", "--json", "--type=q8_0"]] and "<b>" not in text and "1e-6" in text
    )
    assert client.post("/export/one", data={"form": "--out=/etc"}, headers=OWN_PAGE).status_code == 400


OUT = ["../up", "/etc", "one/../../up", ".studio"]


@pytest.mark.parametrize("name", OUT)
@pytest.mark.parametrize("place", ["chat", "tokens", "export", "ask"])
def test_nothing_is_asked_of_what_is_no_run(client: TestClient, make_run: MakeRun, place: str, name: str):
    make_run("../up")
    body = {"text": "a", "form": "gguf", "wish": "resume"}
    assert client.post(f"/{place}/{quote(name)}", data=body, headers=OWN_PAGE).status_code in (303, 404)


CELLS = [
    {"quantization": "none", "batch": "1", "smi_peak_bytes": 50, "fits": True, "seconds_per_step": 1.0},
    {"quantization": "nf4", "batch": "1", "smi_peak_bytes": 150, "fits": False, "seconds_per_step": 1.0},
    {"quantization": "int8", "batch": "1", "impossible": "<b>no"},
]


def test_a_grid_is_a_heat_map(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    grid = {"model": "m", "card": "T4", "cells": [{"rows": "packed", **cell} for cell in CELLS]}
    answers(monkeypatch, json.dumps(grid), json.dumps({"usable_bytes": 100}))
    text = client.post("/fit/answer", data={"question": "grid", "gpu": "T4"}, headers=OWN_PAGE).text
    assert 'class="h4"' in text and 'class="hx"' in text and "does not fit" in text and "<b>" not in text
    assert grid_values({"cells": []}, None)["rows"] == {}


def test_how_far_it_goes(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    found = {
        "max": "seq-len",
        "value": 4096,
        "plan": {"smi_peak_bytes": 90},
        "too_large": 4160,
        "too_large_plan": {"smi_peak_bytes": 110},
    }
    asked = answers(monkeypatch, json.dumps(found))
    text = client.post("/fit/answer", data={"question": "seq-len", "budget": "16GiB"}, headers=OWN_PAGE).text
    assert (
        "4,096 tokens a row" in text
        and "4,160" in text
        and asked[0][:2] == ["plan", "--json"]
        and "--max=seq-len" in asked[0]
    )


@pytest.mark.parametrize(
    "body",
    [{"question": "nothing"}, {"question": "ladder"}, {"model.name": "/etc/x"}, {"gpu": "--html=/x"}, {"question": "rank"}],
)  # fmt: skip
def test_questions_that_are_refused(client: TestClient, monkeypatch: pytest.MonkeyPatch, body: dict[str, str]):
    asked = answers(monkeypatch, "{}")
    assert client.post("/fit/answer", data=body, headers=OWN_PAGE).status_code in (400, 403) and asked == []


def test_screens_are_there(client: TestClient):
    for path in ("/fit", "/data", "/new", "/runs", "/compare"):
        assert client.get(path).status_code == 200
