"""Attacks: no token, foreign Host and Origin, names that lead out of the folder, script in everything that is shown."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from urllib.parse import quote

import pytest
from starlette.testclient import TestClient
from studio_runs import OWN_PAGE, MakeRun, train_row

from fitune.studio.access import Access
from fitune.studio.confine import Folders
from fitune.studio.server import make_app

SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def test_nothing_is_told_without_the_token(stranger: TestClient, make_run: MakeRun):
    make_run("secret-run")
    for path in (
        "/runs",
        "/runs/secret-run",
        "/events/secret-run",
        "/style.css",
        "/static/studio.js",
        "/new",
        "/nothing",
    ):
        answer = stranger.get(path)
        assert answer.status_code == 401, path
        assert "secret-run" not in answer.text


@pytest.mark.parametrize("token", ["", "x", "é"])
def test_a_wrong_token_is_no_token(stranger: TestClient, token: str):
    assert stranger.get("/runs", params={"token": token}).status_code == 401


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(stranger: TestClient, access: Access):
    answer = stranger.get(f"/runs?token={access.token}&x=1")
    assert answer.status_code == 303 and answer.headers["location"] == "/runs?x=1"
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie and "samesite=strict" in cookie and "8765" in cookie
    assert access.token not in answer.headers["set-cookie"]
    assert stranger.get("/runs").status_code == 200


def test_a_redirect_stays_on_this_server(stranger: TestClient, access: Access):
    answer = stranger.get(f"//evil.example/?token={access.token}")
    assert answer.headers["location"].startswith("/") and not answer.headers["location"].startswith("//")


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1:9", "127.0.0.1", "[::1", "", "10.0.0.1:8765"]
)
def test_a_rebound_name_is_refused(client: TestClient, host: str):
    assert client.get("/runs", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:8765", "[::1]:8765"])
def test_names_of_this_machine_are_known(access: Access, host: str):
    assert access.knows_host(host)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://127.0.0.1:8765", "http://127.0.0.1:9", None]
)
def test_another_sites_form_changes_nothing(client: TestClient, origin: str | None):
    headers = {"origin": origin} if origin else {}
    answer = client.post("/theme?to=dark", headers=headers)
    assert answer.status_code == 403 and "fitune-theme" not in answer.headers.get("set-cookie", "")
    assert client.post("/theme?to=dark", headers=OWN_PAGE).status_code == 303


def test_every_answer_carries_the_policy(client: TestClient, stranger: TestClient):
    for path in ("/runs", "/nothing", "/static/studio.js", "/runs/none"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe-inline" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert "access-control-allow-origin" not in headers


OUT = [
    "..", "../outside", "..%2foutside", "%2e%2e/outside", "%2e%2e%2foutside", "/etc", "//etc/passwd", "ok/../../outside",
    "ok/..%2f..%2foutside", "a/b/c", ".studio", "ok/.hidden", "link", "ok%00", "ok%5c..%5coutside",
]  # fmt: skip


@pytest.mark.parametrize("name", OUT)
@pytest.mark.parametrize("place", ["runs", "settings", "events", "chart"])
def test_no_address_leads_out_of_the_folder(
    client: TestClient, make_run: MakeRun, folders: Folders, name: str, place: str
):
    make_run("ok")
    outside = folders.runs.parent / "outside"
    make_run("../outside")
    (outside / "settings.yaml").write_text("secret: true")
    (folders.runs / "link").symlink_to(outside)
    answer = client.get(f"/{place}/{name}?key=train:loss&from=0&to=9")
    assert answer.status_code in (303, 400, 404), answer.text
    assert "secret" not in answer.text


@pytest.mark.parametrize("name", ["../outside", "/etc", "ok/../../outside", "%2e%2e"])
def test_compare_takes_no_path(client: TestClient, make_run: MakeRun, name: str):
    make_run("ok")
    make_run("../outside")
    assert client.get("/compare", params={"run": ["ok", name]}).status_code == 404


@pytest.mark.parametrize(
    "path", ["/static/../server.py", "/static/%2e%2e/server.py", "/static/..%2fserver.py", "/static//etc/passwd"]
)
def test_static_files_are_static_files(client: TestClient, path: str):
    assert client.get(f"/static/{path}").status_code == 404


@pytest.mark.parametrize("back", ["//evil.example", "https://evil.example", "/\\evil.example", "javascript:alert(1)"])
def test_the_theme_leads_nowhere_else(client: TestClient, back: str):
    assert client.post("/theme", params={"to": "dark", "back": back}, headers=OWN_PAGE).headers["location"] == "/runs"


class Elements(HTMLParser):
    """Scripts by their address, and what no page of ours has: images, other sites, attributes that run or style."""

    def __init__(self):
        super().__init__()
        self.scripts: list[str] = []
        self.odd: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        held = dict(attrs)
        if tag == "script":
            self.scripts.append(held.get("src") or "")
        if tag in ("img", "b", "iframe") or any(name.startswith("on") or name == "style" for name in held):
            self.odd.append(f"{tag} {attrs}")
        self.odd += [
            f"{tag} {name}" for name in ("src", "href", "action") if not (held.get(name) or "/").startswith(("/", "#"))
        ]


def test_script_in_names_rows_and_figures_is_text(client: TestClient, make_run: MakeRun):
    name = "<script>alert(1)<script>&\"'"
    folder = make_run(
        name, model={"name": SCRIPT}, method=SCRIPT, tuning=SCRIPT, status="failed", error=SCRIPT,
        data={"train": SCRIPT, "exclude": []}, results={"before": {SCRIPT: 1.0}, "after": {SCRIPT: 2.0}},
        memory={"ladder": {"steps": [{"name": SCRIPT, "saves_bytes": 5, "quality": SCRIPT}]}, "measured": {}},
    )  # fmt: skip
    make_run("other")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_row(21) | {SCRIPT: 1.0}) + "\n" + json.dumps(train_row(22) | {SCRIPT: 2.0}) + "\n")
    asked = {"row": 1, "asked": SCRIPT, "answer": SCRIPT, "wanted": SCRIPT, "stopped": False, "step": 1}
    with (folder / "samples.jsonl").open("a") as file:
        for moment in ("before", "after"):
            file.write(json.dumps(asked | {"moment": moment}) + "\n")
        rollout = asked | {"moment": "rollout", "reward": 1.0, "rewards": {SCRIPT: 1.0}}
        file.write(json.dumps(rollout) + "\n")
    (folder / "settings.yaml").write_text(json.dumps({"a": SCRIPT, SCRIPT: "b"}))
    pages = ["/runs", f"/runs/{quote(name)}", f"/settings/{quote(name)}", f"/compare?run={quote(name)}&run=other"]
    for path in [*pages, f"/runs/{quote('<b>none</b>')}"]:
        text = client.get(path).text
        read = Elements()
        read.feed(text)
        assert read.scripts == ["/static/studio.js"] and not read.odd, (path, read.odd)
    assert "&lt;script&gt;alert(1)&lt;script&gt;" in client.get("/runs").text


def test_a_password_opens_a_studio_that_others_reach(folders: Folders, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fitune.studio.access.WRONG_PASSWORD_SECONDS", 0.0)
    app = make_app(folders, Access("0.0.0.0", 80, password="long enough"))
    with TestClient(app, base_url="http://10.0.0.7", follow_redirects=False) as client:
        own = {"origin": "http://10.0.0.7"}
        assert client.get("/runs").headers["location"] == "/login"
        assert client.get("/runs?token=").headers["location"] == "/login"
        assert client.get("/login").status_code == 200
        assert client.post("/login", content="password=wrong", headers=own).status_code == 401
        assert client.get("/runs").status_code == 303
        assert client.post("/login", content="password=long+enough", headers=own).status_code == 303
        assert client.get("/runs").status_code == 200
        assert client.get("/runs", headers={"host": "evil.example"}).status_code == 421
