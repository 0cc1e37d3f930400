"""`fitune serve` as a process of its own."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from click.testing import CliRunner
from openai import OpenAI

from fitune.cli import cli
from fitune.errors import ModelError, SettingsError


@pytest.mark.slow
def test_a_process_serves_keeps_its_size_and_ends_on_sigterm(adapters):
    command = [sys.executable, "-m", "fitune.cli", "serve", str(adapters[0]), "--port", "0", "--device", "cpu"]
    command += ["--adapter", f"second={adapters[1]}"]
    with ExitStack() as stack, subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "serving" in line)
        url = re.search(r"http://\S+", line)
        assert url is not None
        client = stack.enter_context(OpenAI(base_url=url[0], api_key="none", max_retries=0, timeout=60))

        def ask(at: int) -> str:
            said = client.chat.completions.create(
                model=("second", str(client.models.list().data[0].id))[at % 2],
                messages=[{"role": "user", "content": f"number {at % 10}"}],
                max_tokens=4,
            )
            return str(said.choices[0].message.content)

        first = [ask(at) for at in range(20)]
        size = psutil.Process(process.pid).memory_info().rss
        for at in range(200):
            assert ask(at) == first[at % 20]
        assert psutil.Process(process.pid).memory_info().rss - size < 20e6
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM, 143)


@pytest.mark.parametrize(
    ("words", "error", "says"),
    [
        (["x", "--adapter", "yoda"], SettingsError, "write NAME=RUN"),
        (["x", "--adapter", "a=b", "--adapter", "a=c"], SettingsError, "twice"),
        (["x", "--host", "0.0.0.0"], SettingsError, "set a key"),
        (["nothing-here", "--port", "0"], ModelError, "nothing-here"),
    ],
)
def test_what_cannot_be_served_is_said(words, error, says, monkeypatch):
    monkeypatch.delenv("FITUNE_API_KEY", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = CliRunner().invoke(cli, ["serve", *words])
    assert isinstance(result.exception, error)
    assert says in str(result.exception)


def test_a_taken_port_is_known_before_the_model_is_loaded(tmp_path: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = CliRunner().invoke(cli, ["serve", str(tmp_path / "none"), "--port", str(taken.getsockname()[1])])
    assert isinstance(result.exception, ModelError)
    assert "choose another with --port" in str(result.exception)


def test_adapters_need_a_run(tiny_llama: Path):
    result = CliRunner().invoke(cli, ["serve", str(tiny_llama), "--adapter", "a=b", "--port", "0", "--device", "cpu"])
    assert isinstance(result.exception, ModelError)
    assert "bare model" in str(result.exception)
