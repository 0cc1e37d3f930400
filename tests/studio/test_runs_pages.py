"""The list, a run's page and its events, runs compared: what is there, what is damaged, what is dead."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from studio_runs import MakeRun, hold, train_row

from fitune.studio.access import Access
from fitune.studio.confine import Folders
from fitune.studio.reading.run_list import RunList


def test_the_empty_page_teaches_the_first_step(client: TestClient):
    text = client.get("/runs").text
    assert "No runs yet" in text and "fitune demo" in text and 'href="/new"' in text
    assert client.get("/").headers["location"] == "/runs"


def test_a_run_in_a_line(client: TestClient, make_run: MakeRun):
    make_run("one")
    text = client.get("/runs").text
    assert "finished" in text and "20 of 20" in text and "org/tiny" in text and "<polyline" in text
    assert re.search(r"0 → <strong>0\.5</strong>", text) and "exact match" in text


@pytest.mark.parametrize(
    ("status", "locked", "shown"),
    [("running", "living", "running"), ("running", "gone", "dead"), ("running", "", "dead"), ("interrupted", "", "interrupted")],
)  # fmt: skip
def test_a_run_whose_process_is_gone_is_dead(
    folders: Folders, make_run: MakeRun, living: int, status: str, locked: str, shown: str
):
    path = make_run("one", status=status)
    if locked:
        child = subprocess.Popen([sys.executable, "-c", ""])
        child.wait()
        hold(path, living if locked == "living" else child.pid)
    (entry,) = RunList(folders.runs).entries()
    assert entry.state == shown


def test_a_zombie_is_dead(folders: Folders, make_run: MakeRun):
    path = make_run("one", status="running")
    child = subprocess.Popen([sys.executable, "-c", ""])
    try:
        hold(path, child.pid)
        deadline = time.monotonic() + 10
        while RunList(folders.runs).entries()[0].state != "dead" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert RunList(folders.runs).entries()[0].state == "dead"
    finally:
        child.wait()


def test_another_machines_run_is_not_called_dead(folders: Folders, make_run: MakeRun):
    path = make_run("one", status="running")
    (path / "run.lock").write_text(json.dumps({"pid": 1, "host": "elsewhere.example"}))
    assert RunList(folders.runs).entries()[0].state == "elsewhere"


DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    '{"status": "running", "model": 5}',
    '{"started": 1}',
    '{"status": "finished", "results": []}',
]


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_run_says_so_and_the_others_stay(client: TestClient, make_run: MakeRun, text: str):
    make_run("good")
    (make_run("bad") / "manifest.json").write_text(text)
    listed = client.get("/runs")
    assert listed.status_code == 200 and "good" in listed.text and "damaged" in listed.text
    for place in ("runs", "settings"):
        assert client.get(f"/{place}/bad").status_code == 200
    assert client.get("/compare?run=good&run=bad").status_code == 200


def test_a_run_folder_with_nothing_but_a_manifest(client: TestClient, make_run: MakeRun):
    path = make_run("bare")
    for name in ("metrics.jsonl", "samples.jsonl", "settings.yaml"):
        (path / name).unlink()
    text = client.get("/runs/bare").text
    assert "Nothing is logged yet" in text
    assert "cannot be read" in client.get("/settings/bare").text


def test_a_run_of_an_older_version(client: TestClient, make_run: MakeRun):
    path = make_run("old", results={"before": {"loss": 2.0}})
    settings = (path / "settings.yaml").read_text().replace("eval_share:", "test_share:")
    (path / "settings.yaml").write_text(settings)
    make_run("new")
    text = client.get("/compare?run=old&run=new").text
    assert "test_share" not in text and client.get("/runs/old").status_code == 200


def test_a_page_reads_without_script(client: TestClient, make_run: MakeRun):
    make_run("one")
    text = client.get("/runs/one").text
    assert 'aria-label="loss: from 2.99 at step 1 to 2.8 at step 20' in text
    assert "<mark>ethay</mark> pig" in text and "oink" in text
    assert "1,024 MiB" in text and "1,025 MiB" in text and "+0.1 %" in text


def test_chains_open(client: TestClient, make_run: MakeRun, folders: Folders):
    make_run("chain/1-sft")
    (folders.runs / "chain" / "chain.json").write_text(json.dumps([{"name": "1-sft"}, {"name": "2-dpo"}]))
    text = client.get("/runs").text
    assert "1 of 2 stages" in " ".join(text.split()) and 'href="/runs/chain/1-sft"' in text
    assert "Each stage" in client.get("/runs/chain").text or "each stage" in client.get("/runs/chain").text
    assert client.get("/runs/chain/1-sft").status_code == 200
    (folders.runs / "chain" / "chain.json").write_text("{")
    assert "damaged" in client.get("/runs").text


def test_compare_shows_curves_settings_and_answers(client: TestClient, make_run: MakeRun):
    path = make_run("a")
    make_run("b", rows=30)
    settings = (path / "settings.yaml").read_text()
    (path / "settings.yaml").write_text(settings.replace("rank: 16", "rank: 99"))
    text = client.get("/compare?run=a&run=b").text
    assert "lora.rank" in text and ">99<" in text and "lora.alpha" not in text
    assert text.count("<polyline") >= 4 and "Answers side by side" in text
    assert client.get("/compare").status_code == 200


def test_a_part_of_a_curve(client: TestClient, make_run: MakeRun):
    make_run("one", rows=200)
    figure = client.get("/chart/one?key=train:loss&from=50&to=60").text
    assert "at step 50" in figure and "at step 60" in figure
    for query in ("key=train:loss", "key=none:x&from=1&to=2", "key=train:loss&from=a&to=b"):
        assert client.get(f"/chart/one?{query}").status_code in (400, 404)


@pytest.fixture
def served(folders: Folders) -> Iterator[tuple[str, str]]:
    """(address, cookie) of a studio in a thread: event streams have no end, which the test client waits for."""
    import socket

    import uvicorn

    from fitune.studio.server import make_app

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    access = Access("127.0.0.1", listener.getsockname()[1])
    server = uvicorn.Server(uvicorn.Config(make_app(folders, access), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.02)
    yield f"http://127.0.0.1:{access.port}", f"{access.cookie}={access.session}"
    server.should_exit = True
    thread.join(10)


def events(address: str, cookie: str) -> Iterator[tuple[str, dict[str, str]]]:
    """(number, pieces) of a stream."""
    with urllib.request.urlopen(urllib.request.Request(address, headers={"cookie": cookie}), timeout=15) as stream:
        number = ""
        for line in stream:
            word, _, rest = line.decode().rstrip("\n").partition(": ")
            number = rest if word == "id" else number
            if word == "data":
                yield number, json.loads(rest)


def test_events_tell_every_line_and_a_death_within_ten_seconds(served: tuple[str, str], make_run: MakeRun):
    address, cookie = served
    path = make_run("one", rows=3, status="running")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        hold(path, child.pid)
        stream = events(f"{address}/events/one", cookie)
        number, pieces = next(stream)
        assert number == "4" and "running" in pieces["state"] and set(pieces) > {"charts", "figures", "answers"}
        with (path / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(train_row(4)) + "\n")
        number, pieces = next(stream)
        assert number == "5" and "at step 4" in pieces["charts"] and "answers" not in pieces
        child.kill()
        began = time.monotonic()
        _, pieces = next(stream)
        assert "dead" in pieces["state"] and time.monotonic() - began < 10
    again = events(f"{address}/events/one", cookie)
    number, pieces = next(again)
    assert number == "5" and "at step 4" in pieces["charts"]


def test_the_list_follows(served: tuple[str, str], make_run: MakeRun):
    address, cookie = served
    stream = events(f"{address}/list-events", cookie)
    assert "No runs yet" in next(stream)[1]["run-table"]
    make_run("one")
    assert "/runs/one" in next(stream)[1]["run-table"]


def test_the_server_never_imports_torch(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from fitune.studio.server import make_app; "
        "from fitune.studio.access import Access; from fitune.studio.confine import Folders; "
        "p = Path(sys.argv[1]); make_app(Folders(p, p, (p,)), Access('127.0.0.1', 1)); "
        "print(sorted({'torch', 'transformers', 'datasets', 'peft'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert found.stdout.strip() == "[]"
