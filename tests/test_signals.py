"""SIGTERM and SIGHUP end a command after it has cleaned up; ignored ones stay ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from fitune.signals import ENDING, Stopped, handled, raise_stopped


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_they_raise_and_the_handler_of_before_comes_back(number, status):
    before = signal.getsignal(number)
    with pytest.raises(Stopped) as caught, handled(ENDING, raise_stopped):
        os.kill(os.getpid(), number)
        signal.pause()
    assert caught.value.code == status and signal.getsignal(number) == before


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled(ENDING, raise_stopped):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGHUP", 129), ("SIGINT", 130)])
def test_the_command_line_ends_with_the_status_that_shells_expect(name, status):
    code = (
        "import os, signal, sys\nfrom fitune import cli\n"
        f"def work(**_):\n    try:\n        os.kill(os.getpid(), signal.{name}); signal.pause()\n"
        "    finally:\n        print('cleaned up')\n"
        "cli.cli.main = work\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status and done.stdout == "cleaned up\n" and "Traceback" not in done.stderr
    assert "--resume" in done.stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_behind_the_output_is_a_sentence():
    command = f"{sys.executable} -m fitune.cli settings schema > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "ENOSPC" in done.stderr and "Traceback" not in done.stderr


def test_no_more_memory_is_a_sentence():
    code = (
        "import resource, sys\nfrom fitune import cli\n"
        "def work(**_):\n    resource.setrlimit(resource.RLIMIT_AS, (2**29, 2**29)); bytearray(2**30)\n"
        "cli.cli.main = work\ncli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and "gave no more memory" in done.stderr and "Traceback" not in done.stderr
