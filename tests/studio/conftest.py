"""A folder of runs, and a client that has the studio's cookie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from studio_runs import HOST, MakeRun, write_run

from fitune.studio.access import Access
from fitune.studio.confine import Folders
from fitune.studio.server import make_app


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """A studio's folders below the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return Folders(runs=tmp_path / "runs", data=tmp_path / "data", opened=(tmp_path,))


@pytest.fixture
def make_run(folders: Folders) -> MakeRun:
    """`make_run(name, **facts)` → a run folder below the studio's."""
    return lambda name, **facts: write_run(folders.runs / name, **facts)


@pytest.fixture
def access() -> Access:
    return Access("127.0.0.1", 8765)


@pytest.fixture
def stranger(folders: Folders, access: Access) -> Iterator[TestClient]:
    """Someone without the cookie; redirects are not followed."""
    with TestClient(make_app(folders, access), base_url=f"http://{HOST}", follow_redirects=False) as client:
        yield client


@pytest.fixture
def client(stranger: TestClient, access: Access) -> TestClient:
    """Someone who opened the printed address."""
    assert stranger.get(f"/?token={access.token}").status_code == 303
    return stranger


@pytest.fixture
def living() -> int:
    """A process that is there."""
    return os.getpid()
