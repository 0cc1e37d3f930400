"""Rows from a teacher: a stand-in over HTTP that is slow, broken, or gone; killed runs go on; nothing is asked twice."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from http_server import listening
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from fitune.cli import cli
from fitune.errors import DataError, ModelError
from fitune.teacher.documents import read_passages
from fitune.teacher.near_duplicates import NearDuplicates
from fitune.teacher.prompt_files import read_prompts, write_prompts
from fitune.teacher.row_tasks import _bare, _score
from fitune.teacher.seeds import read_prompts_of
from fitune.teacher.teacher import Journal

SUBJECTS = "cats dogs ships trees clouds rivers bridges engines songs letters maps clocks".split()


@dataclass
class FakeTeacher:
    """Answers by a hash of the question. `faults` are answered first: a status, "broken" JSON, or "empty" text."""

    faults: list[Any] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    key: str = ""
    delay: float = 0.0
    url: str = ""

    async def chat(self, request: Request) -> Response:
        """A completion."""
        body = await request.body()
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "bad key"}}, status_code=401)
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, int):
            headers = {"retry-after-ms": "10"}
            return JSONResponse({"error": {"message": "busy"}}, status_code=fault, headers=headers)
        if fault == "broken":
            return Response("{", status_code=502, headers={"retry-after-ms": "10"})
        await asyncio.sleep(self.delay)
        self.asked[hashlib.sha256(body).hexdigest()] += 1
        asked = json.loads(body)
        text = "" if fault == "empty" else self.answer(asked)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
        whole = {"id": "x", "object": "chat.completion", "created": 1, "model": asked["model"]}
        return JSONResponse({**whole, "choices": [choice], "usage": usage})

    @staticmethod
    def answer(asked: dict[str, Any]) -> str:
        """Different for each question and seed; a judgement where one is asked for."""
        prompt = asked["messages"][-1]["content"]
        number = int(hashlib.sha256(f"{prompt}{asked['seed']}".encode()).hexdigest()[:12], 16)
        if "JSON object" in prompt:
            return json.dumps({"score": 1 + number % 10, "reason": "so"})
        words = [SUBJECTS[(number >> shift) % len(SUBJECTS)] for shift in range(0, 40, 4)]
        return f"Tell me about {' '.join(words)}"

    async def models(self, request: Request) -> Response:
        """One model."""
        return JSONResponse({"object": "list", "data": [{"id": "big", "object": "model"}]})

    @contextmanager
    def listening(self) -> Generator[FakeTeacher, None, None]:
        """On a free port while the block runs."""
        routes = [
            Route("/v1/chat/completions", self.chat, methods=["POST"]), Route("/v1/models", self.models),
        ]  # fmt: skip
        with listening(Starlette(routes=routes)) as url:
            self.url = f"{url}/v1"
            yield self


@pytest.fixture
def teacher() -> Iterator[FakeTeacher]:
    with FakeTeacher().listening() as fake:
        yield fake


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    path = tmp_path / "seeds.jsonl"
    texts = (f"What is the use of {subject}, and who found out?" for subject in SUBJECTS)
    path.write_text("".join(json.dumps({"prompt": text, "completion": "Much."}) + "\n" for text in texts))
    return path


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for at, subject in enumerate(SUBJECTS):
        paragraphs = [
            f"{subject.title()} are known for part {part}. " + "They go far and wide. " * 20 for part in range(6)
        ]
        (folder / f"{at}.md").write_text("\n\n".join(paragraphs))
    return folder


def words_of(task: str, source: Path, out: Path, teacher: FakeTeacher, *more: str) -> list[str]:
    return ["data", "generate", task, "--server", teacher.url, "--from", str(source), "--out", str(out), *more]


def generate(*words: str) -> dict[str, Any]:
    result = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_instructions_have_an_origin_and_no_two_are_alike(teacher, seeds, tmp_path, tiny_llama):
    made = generate(*words_of("instructions", seeds, tmp_path / "rows.jsonl", teacher, "--rows", "20"))
    rows = rows_of(tmp_path / "rows.jsonl")
    assert made["rows"] == len(rows) == 20
    assert len({row["prompt"] for row in rows}) == 20
    assert all(
        row["task"] == "instructions" and row["teacher"] == "big" and "seeds.jsonl, row" in row["source"]
        for row in rows
    )
    check = CliRunner().invoke(cli, ["data", "check", str(tmp_path / "rows.jsonl"), "--model.name", str(tiny_llama)])
    assert check.exit_code == 0 and "20 training rows" in check.output


def test_the_same_command_gives_the_same_rows_and_asks_nothing_again(teacher, seeds, tmp_path):
    words = words_of("evolve", seeds, tmp_path / "rows.jsonl", teacher, "--rows", "15", "--concurrency", "5")
    generate(*words)
    first, asked = (tmp_path / "rows.jsonl").read_bytes(), sum(teacher.asked.values())
    (tmp_path / "rows.jsonl").unlink()
    again = generate(*words)
    assert (tmp_path / "rows.jsonl").read_bytes() == first
    assert again["asked"] == 0 and sum(teacher.asked.values()) == asked


def test_busy_broken_and_empty_answers_lose_no_row(teacher, seeds, tmp_path):
    teacher.faults = [429, 500, "broken", "empty", 503, 429, 429, "empty", 500]
    made = generate(*words_of("instructions", seeds, tmp_path / "rows.jsonl", teacher, "--rows", "8"))
    assert made["rows"] == 8
    assert made["rejected"] == {"an empty answer": 2}
    assert not teacher.faults


@pytest.mark.slow
def test_killed_three_times_nothing_is_lost_or_asked_twice(teacher, documents, tmp_path):
    teacher.delay = 0.03
    out = tmp_path / "rows.jsonl"
    words = words_of(
        "questions", documents, out, teacher, "--rows", "50", "--concurrency", "3", "--max-new-tokens", "50"
    )
    journal = tmp_path / "rows.jsonl.journal.jsonl"
    for kill in range(3):
        with subprocess.Popen([sys.executable, "-m", "fitune.cli", *words], stderr=subprocess.DEVNULL) as process:
            until = time.monotonic() + 60
            while (len(journal.read_bytes().splitlines()) if journal.exists() else 0) < 12 * (kill + 1):
                assert time.monotonic() < until
                time.sleep(0.01)
            os.kill(process.pid, signal.SIGKILL)
    with journal.open("a") as file:
        file.write('{"key": "cut o')  # as a kill in the middle of a line leaves it
    kept = len(journal.read_bytes().splitlines()) - 1
    made = generate(*words)
    assert made["rows"] == 50 and made["from_journal"] >= kept
    # Asked twice were at most the questions that were on their way when the process was killed.
    assert sum(count - 1 for count in teacher.asked.values()) <= 3 * 3
    rows = rows_of(out)
    assert len({row["source"] for row in rows}) > 20
    texts = {path.name: " ".join(path.read_text().split()) for path in documents.iterdir()}
    assert all(" ".join(row["passage"].split()) in texts[row["source"].partition(",")[0]] for row in rows)


def test_a_budget_is_kept_over_sessions(teacher, seeds, tmp_path):
    words = words_of("answers", seeds, tmp_path / "rows.jsonl", teacher, "--concurrency", "1", "--max-tokens", "150")
    made = generate(*words)
    assert made["rows"] == 5 and "150 of 150 tokens are spent" in made["stopped"]
    assert generate(*words)["asked"] == 0
    words = words_of("answers", seeds, tmp_path / "rows.jsonl", teacher, "--concurrency", "1", "--price-out", "1e6")
    made = generate(*words, "--max-cost", "60")
    assert made["cost"] == 60 and made["rows"] == 6


def test_pairs_are_the_best_and_the_worst(teacher, seeds, tmp_path):
    made = generate(*words_of("pairs", seeds, tmp_path / "pairs.jsonl", teacher, "--rows", "6"))
    rows = rows_of(tmp_path / "pairs.jsonl")
    assert made["rows"] == len(rows) > 3
    assert all(row["scores"][0] > row["scores"][1] and row["chosen"] != row["rejected"] for row in rows)


def test_judge_keeps_rows_from_a_score_on(teacher, seeds, tmp_path):
    out = tmp_path / "good.jsonl"
    words = ["data", "judge", str(seeds), "--server", teacher.url, "--out", str(out), "--least", "6"]
    judged = generate(*words)
    rows = rows_of(out)
    assert judged["rows"] == len(SUBJECTS) and judged["kept"] == len(rows) < len(SUBJECTS)
    assert all(row["score"] >= 6 and row["completion"] == "Much." for row in rows)


def test_a_test_set_is_kept_out(teacher, seeds, tmp_path):
    first = generate(*words_of("instructions", seeds, tmp_path / "a.jsonl", teacher, "--rows", "5"))
    assert first["rows"] == 5
    more = ("--rows", "5", "--test", str(tmp_path / "a.jsonl"))
    second = generate(*words_of("instructions", seeds, tmp_path / "b.jsonl", teacher, *more))
    assert second["rejected"]["nearly the same prompt as another's"] == 5
    prompts = [{row["prompt"] for row in rows_of(tmp_path / name)} for name in ("a.jsonl", "b.jsonl")]
    assert prompts[0].isdisjoint(prompts[1])


def test_what_cannot_be_asked_is_said_and_no_key_is_shown(teacher, seeds, tmp_path, monkeypatch):
    teacher.key = "right-key"
    monkeypatch.setenv("OPENAI_API_KEY", "planted-wrong-key")
    words = words_of("answers", seeds, tmp_path / "rows.jsonl", teacher, "--model", "big")
    refused = CliRunner().invoke(cli, words)
    assert isinstance(refused.exception, ModelError) and "refuses the key (401)" in str(refused.exception)
    assert "planted-wrong-key" not in str(refused.exception) + refused.output
    teacher.url = "http://127.0.0.1:9/v1"
    gone = CliRunner().invoke(cli, [*words_of("answers", seeds, tmp_path / "rows.jsonl", teacher), "--retries", "0"])
    assert isinstance(gone.exception, ModelError) and "cannot be reached" in str(gone.exception)


def test_a_file_that_is_no_journal_is_left_alone(tmp_path):
    path = tmp_path / "x.journal.jsonl"
    path.write_text("my notes\nmore\n")
    with pytest.raises(DataError, match="is no journal"):
        Journal.open(path)
    assert path.read_text() == "my notes\nmore\n"


def test_own_prompts_are_checked(tmp_path):
    assert len(write_prompts(tmp_path)) == 6 and write_prompts(tmp_path) == []
    (tmp_path / "question.txt").write_text("In French, ask about: $passage")
    assert read_prompts(tmp_path)["question"].substitute(passage="x") == "In French, ask about: x"
    (tmp_path / "question.txt").write_text("Ask about $pasage for $5")
    with pytest.raises(DataError, match=r"has to hold \$passage"):
        read_prompts(tmp_path)


def test_documents_of_every_kind(tmp_path):
    from pypdf import PdfWriter

    (tmp_path / "page.html").write_text(
        "<head><title>no</title></head><p>One <b>bold</b> word that is long enough.</p><script>x()</script><p>Two."
    )
    (tmp_path / "long.txt").write_text("A sentence that goes on. " * 200)
    with (tmp_path / "scan.pdf").open("wb") as file:
        writer = PdfWriter()
        writer.add_blank_page(100, 100)
        writer.write(file)
    (tmp_path / "broken.pdf").write_bytes(b"%PDF-nothing")
    passages = read_passages(tmp_path)
    assert {passage.place.split(",")[0] for passage in passages} == {"page.html", "long.txt"}
    assert all(40 <= len(passage.text) <= 1500 for passage in passages)
    assert "One bold word" in next(one.text for one in passages if one.place.startswith("page"))
    with pytest.raises(DataError, match="no document"):
        read_passages(_empty(tmp_path))
    with pytest.raises(DataError, match="is not there"):
        read_passages(tmp_path / "gone")


def _empty(tmp_path: Path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / "data.bin").write_bytes(b"x")
    return folder


def test_small_things():
    assert _bare('"What is it?"') == "What is it?" and _bare("1. What?") == "What?" and _bare("- So") == "So"
    assert _score('Sure: {"score": 7, "reason": "ok"}') == (7.0, "ok")
    assert _score("8") == (8.0, "") and _score("eight") is None and _score('{"score": 70}') is None
    seen = NearDuplicates(["Write a short poem about the sea and the wind at night"])
    assert seen.has("write a short poem about the sea and the wind at night!") and not seen.has("What is a leap year?")


def test_seeds_of_several_forms(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]})
    )
    assert [one.prompt for one in read_prompts_of(path)] == ["Hi"]
    path.write_text(json.dumps({"instruction": "Add", "input": "2 and 3", "output": "5"}))
    assert [one.prompt for one in read_prompts_of(path)] == ["Add\n\n2 and 3"]
    path.write_text(json.dumps({"label": 3}))
    with pytest.raises(DataError, match="holds no prompts"):
        read_prompts_of(path)
