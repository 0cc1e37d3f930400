"""`fitune doctor`: what it finds, and that it gives nothing away."""

from __future__ import annotations

import json
import os

import pytest
from click.testing import CliRunner

from fitune.cli import cli
from fitune.cli.pages import doctor


@pytest.fixture
def no_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_small_run", lambda: {"plan": "left out"})


def test_it_tells_versions_device_and_what_is_missing(no_plan: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 2**60)
    result = CliRunner().invoke(cli, ["doctor"])
    assert result.exit_code == 0, result.output
    for word in ("torch", "training on", "precision", "logged in", "little free disk for runs"):
        assert word in result.stdout


def test_a_bug_report_holds_no_secret(no_plan: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    text = CliRunner().invoke(cli, ["doctor", "--json"]).stdout
    assert json.loads(text)["hub"]["logged in"] == "yes"
    assert "hf_secret" not in text and os.path.expanduser("~") not in text and os.getcwd() not in text
