"""The registry of data forms: every form reads its own example, and a new one needs a line there and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import fitune
from fitune.cli import cli
from fitune.cli.pages.doc_tables import data_forms
from fitune.config.fields import all_fields
from fitune.data.prepare import PREPARE
from fitune.data.read.files import read_rows
from fitune.data.read.forms import DATA_FORMS
from fitune.data.read.forms.cells import Cells, Messages, say
from fitune.data.read.forms.data_form import DataForm
from fitune.data.read.recognise import forms_of, recognise
from fitune.evaluation.prompt_file import questions


@pytest.mark.parametrize("form", DATA_FORMS.values(), ids=list(DATA_FORMS))
def test_a_form_recognises_and_reads_its_own_example(form: DataForm):
    for kind in form.kinds:
        recognised = recognise(tuple(form.example), kind=kind)
        assert recognised.facts is form
        if form.pair is not None:
            assert all(recognised.to_pair(form.example, None, 1).texts)
        elif kind == "prompts":
            assert recognised.to_messages(form.example, None, 1)[0]["role"] == "user"
        else:
            example = recognised.to_example(form.example, "be kind", 1)
            assert example.text or (example.messages and example.messages[0] == say("system", "be kind"))


@pytest.mark.parametrize("form", DATA_FORMS.values(), ids=list(DATA_FORMS))
def test_the_facts_of_a_form_fit_together(form: DataForm):
    assert sum(read is not None for read in (form.conversation, form.text, form.pair)) == 1
    assert set(form.example) <= {*form.needs, *form.may_have} and set(form.needs) <= set(form.example)
    assert set(form.first_for) <= set(form.kinds) <= set(PREPARE) and form.kinds
    assert form.answer_column is None or form.answer_column in form.needs


def test_prompts_try_prompt_and_completion_before_conversations():
    """As in the first release: of a file with both, the methods that answer themselves take the shorter one."""
    both = ["messages", "prompt", "completion"]
    assert recognise(both, kind="prompts").name == "prompt_completion"
    assert recognise(both, kind="rows").name == "messages"
    assert forms_of("prompts")[0].name == "prompt_completion"


def read_qa(row: Cells) -> Messages:
    return [say("user", f"{row.text('passage')}\n{row.text('query')}"), say("assistant", row.text("reply"))]


QA = DataForm(
    name="qa",
    needs=("passage", "query", "reply"),
    kinds=("rows", "prompts"),
    answer_column="reply",
    loss_on="completion",
    conversation=read_qa,
    example={"passage": "Pigs eat.", "query": "What do pigs do?", "reply": "They eat."},
)


@pytest.fixture
def with_qa(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The line that a new form needs. Names of settings are read once, before the line in a test, after it in life."""
    monkeypatch.setitem(DATA_FORMS, "qa", QA)
    all_fields.cache_clear()
    yield
    monkeypatch.undo()
    all_fields.cache_clear()


@pytest.fixture
def qa_file(tmp_path: Path) -> str:
    path = tmp_path / "qa.jsonl"
    rows = [{**QA.example, "query": f"What do {number} pigs do?"} for number in range(10)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.usefixtures("with_qa")
def test_a_new_form_is_checked_and_trained_on(qa_file: str, settings_of: Any, tiny_llama: Path):
    done = CliRunner().invoke(cli, ["data", "check", qa_file, "--model.name", str(tiny_llama), "--json"])
    report = json.loads(done.stdout)["train"]
    assert (report["form"], report["rows"], report["loss_on"]) == ("qa", 10, "completion")
    result = fitune.train(settings_of(data__train=qa_file, data__form="qa", data__eval_share=0.2))
    assert result.status == "finished"
    samples = [json.loads(line) for line in (result.folder / "samples.jsonl").read_text().splitlines()]
    assert samples[0]["wanted"] == "They eat." and "pigs do?" in samples[0]["asked"]


@pytest.mark.usefixtures("with_qa")
def test_a_new_form_is_in_the_flags_the_faults_the_questions_and_the_documents(qa_file: str, tiny_llama: Path):
    asked = ["data", "check", qa_file, "--model.name", str(tiny_llama), "--data.form"]
    assert CliRunner().invoke(cli, [*asked, "qa"]).exit_code == 0
    wrong = CliRunner().invoke(cli, [*asked, "qaa"])
    assert 'did you mean "qa"' in str(wrong.exception) and "prompt, qa" in str(wrong.exception)
    assert "qa" in fitune.Settings.model_json_schema()["$defs"]["DataSettings"]["properties"]["form"]["enum"]
    with pytest.raises(fitune.DataError, match="qa: passage, query, reply"):
        recognise(["nothing"])
    assert questions(read_rows(qa_file))[0] == [say("user", "Pigs eat.\nWhat do 0 pigs do?")]
    assert any(row.startswith("| `qa` | `passage`, `query`, `reply` | sft, ppo, grpo |") for row in data_forms())


def test_without_the_line_the_form_is_unknown(qa_file: str):
    with pytest.raises(fitune.DataError, match="no form is recognised"):
        recognise(read_rows(qa_file).columns)
    with pytest.raises(ValueError, match="'preference' or 'prompt'"):
        fitune.Settings.model_validate({"data": {"form": "qa"}})
