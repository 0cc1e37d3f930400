"""chat, generate and evaluate on a tiny adapter, scripted through standard input."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from click.testing import CliRunner
from transformers import AutoTokenizer

from fitune.adapters.adapter_folder import base_facts, save_adapter
from fitune.adapters.inject import attach, lora_config
from fitune.cli import cli
from fitune.cli.talk.chat import Conversation
from fitune.console import printable
from fitune.data.render.renderer import Renderer
from fitune.errors import ModelError
from fitune.evaluation.generation import Answer, Sampling
from fitune.evaluation.inference_model import Target
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import load_base
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an adapter that changes every answer of its base."""
    source = resolve(str(tiny_model("llama", tie_word_embeddings=False, initializer_range=0.5)))
    tokenizer = load_tokenizer(source)
    template = resolve_template(tokenizer)
    base = load_base(source, tokenizer, template, detect("cpu"), Precision(torch.float32, "test"))
    facts = base_facts(base)
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("run") / "adapter"
    save_adapter(
        attach(base.model, lora_config(base.model, init="debug", alpha=512)), tokenizer, template, folder, facts
    )
    return str(folder)


def run(*arguments: str, stdin: str | None = None):
    return CliRunner().invoke(cli, list(arguments), input=stdin)


def answer(adapter: str, *more: str) -> str:
    result = run("generate", adapter, "pig", "--max-new-tokens", "6", "--device", "cpu", *more)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def test_chat_answers_with_the_adapter_or_the_base_and_keeps_the_history(adapter: str):
    lines = "/base\npig\n/clear\n/adapter\npig\n/help\n/nothing\n/system be kind\n/retry\n/quit\nnever read\n"
    result = run("chat", adapter, "--max-new-tokens", "6", "--device", "cpu", stdin=lines)
    assert result.exit_code == 0, result.output
    said = [line.strip() for line in result.stdout.splitlines()]
    assert said[0] == answer(adapter, "--base") and said[1] == answer(adapter) and said[0] != said[1]
    assert len(said) == 3, "one line for each message and one for /retry"
    assert "/retry" in result.stderr and "no command /nothing" in result.stderr


def test_an_answer_that_was_cut_says_so(adapter: str):
    (row,) = json.loads(answer(adapter, "--json"))
    for result in (
        run("chat", adapter, "--max-new-tokens", "6", "--device", "cpu", stdin="pig\n"),
        run("generate", adapter, "pig", "--max-new-tokens", "6", "--device", "cpu"),
    ):
        assert ("truncated at 6 tokens" in result.stderr) is not row["stopped"]


def test_a_seed_repeats_a_draw(adapter: str):
    draws = [answer(adapter, "--temperature", "3", "--seed", seed) for seed in ("1", "1", "2")]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    "wrong",
    [("--temperature", "-1"), ("--top-p", "0"), ("--max-new-tokens", "0"), ("--top", "0"), ("--steps", "0")],
)
def test_an_impossible_value_is_wrong_usage(adapter: str, wrong: tuple[str, str]):
    result = run("generate", adapter, "pig", *wrong)
    assert result.exit_code == 2 and wrong[0] in result.stderr


def test_an_empty_prompt_is_a_clear_error(adapter: str):
    for more in ((), ("--top", "3")):
        result = run("generate", adapter, "", "--raw", "--device", "cpu", *more)
        assert isinstance(result.exception, ModelError) and "0 tokens" in str(result.exception)


def test_generate_takes_lines_files_and_gives_json(adapter: str, tmp_path: Path):
    one = answer(adapter)
    piped = run("generate", adapter, "--max-new-tokens", "6", "--device", "cpu", stdin="pig\n\npig\n")
    assert piped.stdout.splitlines() == [one, one]
    (tmp_path / "a.txt").write_text("pig\neat\n")
    arguments = ("generate", adapter, "--file", str(tmp_path / "a.txt"), "--max-new-tokens", "6", "--device", "cpu")
    rows = json.loads(run(*arguments, "--json").stdout)
    assert [row["prompt"] for row in rows] == ["pig", "eat"] and printable(rows[0]["answer"]) == one
    assert run("generate", adapter, "pig", "--file", "x").exit_code == 2


def test_the_next_token_view_counts_down_from_the_likeliest(adapter: str):
    arguments = ("generate", adapter, "the pig", "--raw", "--top", "4", "--steps", "3", "--device", "cpu")
    (view,) = json.loads(run(*arguments, "--json").stdout)
    assert 1 <= len(view["steps"]) <= 3
    for step in view["steps"]:
        shares = [candidate["probability"] for candidate in step]
        assert len(shares) == 4 and shares == sorted(shares, reverse=True) and sum(shares) <= 1
    assert "1." in run(*arguments).stdout


def test_evaluate_measures_a_file(adapter: str, tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "pig", "completion": "igpay"}) + "\n")
    arguments = ("evaluate", adapter, "--data", str(path), "--max-new-tokens", "4", "--device", "cpu")
    found = json.loads(run(*arguments, "--json").stdout)
    assert set(found["metrics"]) == {"loss", "exact_match", "word_accuracy", "chrf", "stopped", "rows"}
    assert found["rows"][0]["wanted"] == "igpay"
    assert json.loads(run(*arguments, "--json", "--base").stdout)["metrics"]["loss"] != found["metrics"]["loss"]
    assert "loss" in run(*arguments).stdout


def test_a_target_that_is_nothing_is_a_clear_error(tmp_path: Path):
    for command in (("chat",), ("generate", "x"), ("evaluate", "--data", "x.jsonl")):
        result = run(command[0], str(tmp_path / "none"), *command[1:])
        assert isinstance(result.exception, ModelError) and "there is no run or model" in str(result.exception)


def test_the_system_prompt_of_the_training_is_kept_and_given(adapter: str, tmp_path: Path):
    import shutil

    from fitune.data.render.asking import Asking

    kept = tmp_path / "adapter"
    shutil.copytree(adapter, kept)
    Asking(system="the pig eats a banana on a string").write(kept)
    plain, given = answer(adapter), answer(adapter, "--system", "the pig eats a banana on a string")
    assert answer(str(kept)) == given != plain
    assert answer(str(kept), "--system", "") == plain
    chatted = run("chat", str(kept), "--max-new-tokens", "6", "--device", "cpu", stdin="pig\n/system\n/clear\npig\n")
    assert [line.strip() for line in chatted.stdout.splitlines()] == [given, plain]


def test_a_name_that_is_nothing_lists_the_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    failed = run("generate", "xyzzy", "pig").exception
    assert isinstance(failed, ModelError)
    assert 'no run "xyzzy" in runs (runs: mine), and no model of that name opens' in str(failed)


def test_calls_are_listed_and_their_results_are_given(
    tiny_llama: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """The model is played by the test; template, reader of calls and conversation are the real ones."""
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tool: dict = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object", "properties": {}}}}
    call = '<tool_call>{"name": "rain", "arguments": {"city": "%s"}}</tool_call>'
    answers = iter([call % "Rome" + call % "Oslo", "In Oslo."])
    asked: list[str] = []

    class Played(Renderer):
        def prompt_ids(self, messages, tools=(), thinking=None):
            asked.append(self.text_of(messages, True, tools))
            return [1]

    def played(model, renderer, prompt, sampling):
        text = next(answers)
        yield text
        return Answer(text, True, "", text)

    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    monkeypatch.setattr("fitune.evaluation.generation.stream", played)
    monkeypatch.setattr("fitune.evaluation.generation.check_fits", lambda *_: None)
    target = SimpleNamespace(renderer=Played(tokenizer, template, (tokenizer.eos_token_id,)), model=None)
    monkeypatch.setattr(
        "fitune.evaluation.adapter_session.Desk", lambda *_: SimpleNamespace(model=None, speaker=lambda: "base")
    )
    talk = Conversation(cast(Target, target), None, Sampling(9), [tool])
    talk.give("early")
    talk.ask("Where does it rain?")
    assert talk.command("/tool dry") and talk.command("/tool wet")
    said = capsys.readouterr().err
    assert (
        "no tool call waits" in said and 'calls rain({"city": "Oslo"})' in said and "next: the result of rain" in said
    )
    assert [one["role"] for one in talk.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert asked[1].endswith(
        f"assistant\n{call % 'Rome'}{call % 'Oslo'}<|im_end|>\n<|im_start|>tool\ndry<|im_end|>\n<|im_start|>tool\nwet<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert talk.messages[-1]["content"] == "In Oslo."
