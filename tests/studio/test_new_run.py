"""The form: out of the schema, faults at their field, files only from opened folders; started runs are processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from starlette.testclient import TestClient
from studio_runs import OWN_PAGE, MakeRun, answers, hold

from fitune.config.fields import all_fields
from fitune.config.settings_loader import load_settings
from fitune.studio.confine import Folders, Refused
from fitune.studio.starting import jobs as jobs_module
from fitune.studio.starting.jobs import Jobs
from fitune.studio.starting.settings_form import COMMON, FIRST, PLACED, changed, fill, groups

DATA = {"data.train": "demo:pig-latin"}


def wait_for(told: Callable[[], bool], seconds: float = 15) -> None:
    deadline = time.monotonic() + seconds
    while not told():
        assert time.monotonic() < deadline
        time.sleep(0.03)


def test_every_setting_has_a_field_with_its_words(client: TestClient):
    text = client.get("/new").text
    for key, one in all_fields().items():
        if key != PLACED:
            assert f'name="{key}"' in text, key
            assert one.kind.split(",")[0][:20] in text or one.choices
    assert PLACED not in {one.key for _, _, some in groups() for one in some}
    assert {*FIRST, *COMMON} <= all_fields().keys()


def test_only_what_is_filled_in_is_set(folders: Folders):
    filled = fill({**DATA, "lora.rank": "8", "train.learning_rate": "", "run.name": "mine", "nonsense": "1"}, folders)
    assert filled.faults == {}
    assert yaml.safe_load(filled.recipe) == {
        "data": {"train": "demo:pig-latin"}, "lora": {"rank": 8}, "run": {"name": "mine", "folder": "runs"},
    }  # fmt: skip
    assert filled.command == "fitune train --data.train demo:pig-latin --lora.rank 8 --run.name mine"
    path = folders.runs / "recipe.yaml"
    path.write_text(filled.recipe)
    assert load_settings(path) == filled.settings


@pytest.mark.parametrize(
    ("given", "key", "words"),
    [
        ({"lora.rank": "0"}, "lora.rank", "is 0; use 1 or more"),
        ({"train.learning_rate": "fast"}, "train.learning_rate", 'is "fast"'),
        ({"train.micro_batch_size": "3"}, "train.micro_batch_size", "does not divide train.batch_size 8"),
        ({"memory.budget": "much"}, "memory.budget", "is not a memory size"),
        ({"run.name": "../up"}, "run.name", "one folder name"),
        ({"run.name": ".hidden"}, "run.name", "one folder name"),
        ({"data.train": ""}, "data.train", "is empty"),
        ({"trainer": "adam_beta2"}, "trainer", "write name=value"),
        ({"method": "sftt"}, "method", 'did you mean "sft"'),
    ],
)
def test_faults_stand_at_their_field_in_the_settings_own_words(folders: Folders, given: dict, key: str, words: str):
    assert words in " ".join(fill({**DATA, **given}, folders).faults[key])


OUTSIDE = [
    ("data.train", "/etc/passwd"), ("data.train", "a.jsonl, /etc/passwd*2"), ("model.name", "/root"),
    ("data.eval", "../secret.jsonl"),
    ("data.train", "~/x.jsonl"), ("model.chat_template", "/etc/passwd"), ("lora.continue_from", "../other"),
    ("model.merge", "a,/etc"), ("rl.rewards", "0.5*/etc/evil.py:f"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), OUTSIDE)
def test_files_that_were_not_opened_are_refused(folders: Folders, key: str, value: str):
    more = {"method": "grpo"} if key == "rl.rewards" else {}
    assert "outside the opened folders" in " ".join(fill({**DATA, **more, key: value}, folders).faults[key])


def test_links_out_of_opened_folders_are_refused(folders: Folders, tmp_path_factory: pytest.TempPathFactory):
    outside = tmp_path_factory.mktemp("outside") / "rows.jsonl"
    outside.write_text("{}")
    Path("inside.jsonl").symlink_to(outside)
    assert "outside" in " ".join(fill({"data.train": "inside.jsonl"}, folders).faults["data.train"])


def test_names_that_are_no_files_pass(folders: Folders):
    for name in ("hub:org/data:main", "demo:pig-latin:50", "not-there.jsonl", "demo:pig-latin, hub:org/data*0.5"):
        assert fill({"data.train": name, "model.name": "Qwen/Qwen2.5-7B"}, folders).faults == {}


def test_a_new_run_takes_a_name_that_is_free(folders: Folders, make_run: MakeRun):
    make_run("taken")
    assert "there is such a run" in fill({**DATA, "run.name": "taken"}, folders).faults["run.name"][0]
    name = fill(DATA, folders).name
    assert name.startswith("smollm2-135m-instruct-") and fill({**DATA, "run.name": name}, folders).faults == {}


def test_settings_of_a_run_fill_the_form(client: TestClient, folders: Folders, make_run: MakeRun):
    path = make_run("one")
    stored = yaml.safe_load((path / "settings.yaml").read_text())
    stored["lora"] |= {"rank": 64, "targets": ["q_proj", "v_proj"]}
    stored["data"]["columns"] = {"prompt": "q"}
    (path / "settings.yaml").write_text(yaml.safe_dump(stored))
    found = changed(stored)
    assert found == {"data.columns": "prompt=q", "lora.rank": "64", "lora.targets": "q_proj,v_proj"}
    assert fill({**DATA, **found}, folders).settings.lora.targets == ["q_proj", "v_proj"]
    assert 'value="q_proj,v_proj"' in client.get("/new?from=one").text
    (path / "settings.yaml").write_text("{")
    assert client.get("/new?from=one").status_code == 404


def test_the_form_is_checked_as_it_is_typed(client: TestClient):
    told = client.post("/new/check", data={**DATA, "lora.rank": "-1"}, headers=OWN_PAGE).json()
    assert list(told["faults"]) == ["lora.rank"] and "lora" in told["recipe"] and "--lora.rank" in told["command"]


def test_a_form_with_faults_starts_nothing(client: TestClient, folders: Folders):
    answer = client.post("/new", data={**DATA, "lora.rank": "-1", "do": "start"}, headers=OWN_PAGE)
    assert answer.status_code == 422 and "lora.rank is -1" in answer.text and not folders.own.exists()


def test_a_form_that_is_too_large(client: TestClient):
    assert client.post("/new/check", content=b"a=" + b"x" * (2 << 20), headers=OWN_PAGE).status_code == 413


@pytest.fixture
def fake_train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """In place of `fitune train`: says its words, waits for a file `go`, ends with what is in it."""
    script = tmp_path / "fitune_fake.py"
    script.write_text(
        "import signal, sys, time, pathlib\n"
        "print('words', sys.argv[1:], flush=True)\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('keep', flush=True))\n"
        "try:\n"
        "    while not pathlib.Path('go').exists(): time.sleep(0.02)\n"
        "except KeyboardInterrupt: print('interrupted', flush=True); sys.exit(130)\n"
        "sys.exit('error: it went wrong\\n  - here')\n"
    )
    monkeypatch.setattr(jobs_module, "command", lambda words: [sys.executable, str(script), *words])
    return script


def test_a_started_run_is_a_process_of_its_own(client: TestClient, folders: Folders, fake_train: Path):
    answer = client.post("/new", data={**DATA, "run.name": "mine", "do": "start"}, headers=OWN_PAGE)
    assert answer.status_code == 303 and answer.headers["location"] == "/runs/mine"
    jobs = Jobs(folders.runs, folders.own)
    wait_for(lambda: "words" in jobs.log("mine").read_text())
    job = jobs.get("mine")
    assert job is not None and os.getsid(job["pid"]) != os.getsid(0)
    assert "starting" in client.get("/runs").text and "words" in client.get("/runs/mine").text
    assert client.post("/new", data={**DATA, "run.name": "mine", "do": "start"}, headers=OWN_PAGE).status_code == 409
    client.post("/ask/mine", data={"wish": "keep"}, headers=OWN_PAGE)
    wait_for(lambda: "keep" in jobs.log("mine").read_text())
    client.post("/ask/mine", data={"wish": "stop"}, headers=OWN_PAGE)
    wait_for(lambda: jobs.state("mine") == "ended")
    assert "interrupted" in jobs.log("mine").read_text()


def test_a_run_that_ends_before_its_folder_is_there_says_why(folders: Folders, fake_train: Path):
    Path("go").touch()
    jobs = Jobs(folders.runs, folders.own)
    jobs.start("mine", "a: b", queued=False)
    wait_for(lambda: jobs.state("mine") == "ended")
    entry = jobs.entry("mine")
    assert entry.state == "failed" and entry.error == "it went wrong\n  - here"
    jobs.forget("mine")
    assert jobs.waiting() == []


def test_queued_runs_go_one_after_the_other(folders: Folders, fake_train: Path):
    jobs = Jobs(folders.runs, folders.own)
    jobs.start("first", "", queued=True)
    wait_for(lambda: jobs.state("first") == "starting")
    jobs.start("second", "", queued=True)
    jobs.start("third", "", queued=True)
    time.sleep(0.4)
    assert jobs.state("second") == jobs.state("third") == "queued"
    jobs.ask("second", "stop")
    assert jobs.get("second") is None
    os.kill(jobs.get("first")["pid"], 9)
    wait_for(lambda: jobs.state("third") == "starting")
    Path("go").touch()
    wait_for(lambda: jobs.state("third") == "ended")


def test_a_process_that_is_gone_before_its_folder_is_there_is_dead(folders: Folders, fake_train: Path):
    jobs = Jobs(folders.runs, folders.own)
    jobs.start("mine", "", queued=False)
    wait_for(lambda: (jobs.get("mine") or {}).get("state") == "running")
    path = folders.own / "jobs" / "mine.json"
    job = json.loads(path.read_text())
    path.write_text(json.dumps(job | {"pid": 2**22 + 3}))
    assert jobs.state("mine") == "dead"
    os.kill(job["pid"], 9)


def test_nobody_is_asked_who_does_not_train(folders: Folders, make_run: MakeRun, client: TestClient):
    make_run("done")
    with pytest.raises(Refused, match="no process"):
        Jobs(folders.runs, folders.own).ask("done", "stop")
    for name, wish in (("done", "explode"), ("done", "stop"), ("../x", "stop"), ("none", "resume")):
        assert client.post(f"/ask/{name}", data={"wish": wish}, headers=OWN_PAGE).status_code in (400, 404, 409)


def test_a_running_run_of_a_terminal_is_stopped_too(client: TestClient, make_run: MakeRun):
    path = make_run("one", status="running")
    code = "import time\ntry:\n print(1, flush=True); time.sleep(60)\nexcept KeyboardInterrupt: raise SystemExit(7)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline()
        hold(path, child.pid)
        page = client.get("/runs/one").text
        assert "Stop and keep" in page
        client.post("/ask/one", data={"wish": "stop"}, headers=OWN_PAGE)
        assert child.wait(10) == 7
    assert "Resume" in client.get("/runs/one").text


def test_a_folder_without_write_permission(folders: Folders):
    folders.own.parent.joinpath(folders.own.name).write_text("a file in its place")
    with pytest.raises(Refused, match="cannot be written"):
        Jobs(folders.runs, folders.own).start("mine", "", queued=False)


PLAN = {
    "model": "m", "question": "q", "verdict": "fits 16GiB: needs 1", "card": "16 GiB", "usable_bytes": 100, "fits": True,
    "smi_parts": {"weights": 40, "<b>": 10}, "smi_peak_bytes": 50, "trained_parameters": 1, "total_parameters": 10,
    "seconds_per_step": 0.5, "notes": ["<i>note</i>"],
}  # fmt: skip


def test_the_memory_is_planned_by_the_command(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    asked = answers(monkeypatch, json.dumps(PLAN))
    text = client.post("/new/plan", data={**DATA, "gpu": "T4", "lora.rank": "4"}, headers=OWN_PAGE).text
    assert asked == [["plan", "--json", "--gpu=T4", "--data.train=demo:pig-latin", "--lora.rank=4"]]
    assert "fits 16GiB" in text and text.count("<rect") >= 3 and "<b>" not in text and "<i>" not in text
    client.post("/new/plan", data={**DATA, "gpu": "T4", "lora.rank": "4"}, headers=OWN_PAGE)
    assert len(asked) == 1
    assert client.post("/new/plan", data={**DATA, "gpu": "--svg"}, headers=OWN_PAGE).status_code == 400


def test_a_plan_that_fails_says_why(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    answers(monkeypatch, "a note\nerror: no such model\n", status=1)
    text = client.post("/new/plan", data=DATA, headers=OWN_PAGE).text
    assert "no such model" in text and "a note" not in text
    assert "no faults" in client.post("/new/plan", data={"lora.rank": "0"}, headers=OWN_PAGE).text


def test_a_ladder_in_words(client: TestClient, monkeypatch: pytest.MonkeyPatch):
    step = {"setting": "model.quantization", "name": "NF4", "quality": "a little", "saves_bytes": 5, "time_factor": 1.5}
    found = {
        "card": "T4",
        "fits": True,
        "usable_bytes": 20,
        "asked_smi_peak_bytes": 15,
        "steps": [step | {"smi_peak_bytes": 10}],
    }
    asked = answers(monkeypatch, json.dumps(found))
    text = client.post("/new/plan", data={**DATA, "gpu": "T4", "ladder": "1"}, headers=OWN_PAGE).text
    assert "--ladder" in asked[0] and "NF4" in text and "1.50×" in text and "a little" in text
