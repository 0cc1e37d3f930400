"""Messages as they are typed or piped into `fitune chat`."""

from __future__ import annotations

import io
import os
import pty
import sys
from typing import Any

from fitune.cli.talk import chat_input
from fitune.cli.talk.chat_input import history_file, messages


def piped(text: str, monkeypatch: Any) -> list[str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return list(messages((), lambda: None))


def test_a_line_is_a_message_and_blank_ones_are_none(monkeypatch):
    assert piped("one\n\n  two \nthree", monkeypatch) == ["one", "two", "three"]


def test_messages_of_several_lines(monkeypatch):
    text = 'a list:\\\n- one\\\n- two\n"""def f():\n    return 1\n"""\n"""\nx\ny"""\nlast\n'
    assert piped(text, monkeypatch) == ["a list:\n- one\n- two", "def f():\n    return 1", "x\ny", "last"]


def test_a_block_that_never_ends_ends_with_the_input(monkeypatch):
    assert piped('"""x\ny\n', monkeypatch) == []


def test_a_terminal_gets_editing_completion_and_a_history_that_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("FITUNE_CACHE", str(tmp_path))
    asked: list[str] = []

    def once() -> None:
        lines = iter(["/ad", "hello"])

        def typed(prompt: str) -> str:
            asked.append(prompt)
            import readline

            line = next(lines, None)
            if line is None:
                raise EOFError
            readline.add_history(line)
            return line

        controller, terminal = pty.openpty()
        with os.fdopen(terminal) as stdin, monkeypatch.context() as patched:
            patched.setattr(sys, "stdin", stdin)
            patched.setattr(chat_input, "_typed", typed)
            assert list(messages(("/adapter", "/adapters"), lambda: None)) == ["/ad", "hello"]
        os.close(controller)

    once()
    import readline

    complete = readline.get_completer()
    assert complete is not None and [complete("/ad", state) for state in range(3)] == ["/adapter", "/adapters", None]
    assert history_file().read_text().split()[-2:] == ["/ad", "hello"]
    readline.clear_history()
    once()
    assert "you: " in asked[0] and readline.get_current_history_length() == 4
