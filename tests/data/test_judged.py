"""Judged answers: labels are read strictly, mismatched rows belong to other prompts, the report counts both kinds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from fitune.cli import cli
from fitune.data.judged import mismatched
from fitune.data.prepare import prepare
from fitune.data.read.recognise import recognise
from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import TokenRow
from fitune.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "pig"}, {"role": "assistant", "content": "igpay"}


@pytest.fixture(scope="module")
def renderer(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    return Renderer(tokenizer, tokenizer.chat_template, frozenset({tokenizer.eos_token_id}))


def write(tmp_path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def row(prompt: str, completion: str, label: Any = True) -> dict[str, Any]:
    return {"prompt": prompt, "completion": completion, "label": label}


@pytest.mark.parametrize(
    ("label", "wanted"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        (1.0, True),
        ("true", True),
        (" False ", False),
        ("0", False),
    ],
)
def test_labels(label, wanted):
    form = recognise(["prompt", "completion", "label"], kind="judged")
    judged = form.to_judged(row("pig", "igpay", label), "be kind", 3)
    assert judged.desirable is wanted and judged.row_number == 3
    assert judged.prompt == ({"role": "system", "content": "be kind"}, USER) and judged.completion == (ASSISTANT,)


@pytest.mark.parametrize("label", [None, 2, "good", [], -1])
def test_labels_that_are_none(label):
    with pytest.raises(DataError, match=r"row 7: label is .*; expected true or false"):
        recognise(["prompt", "completion", "label"], kind="judged").to_judged(row("pig", "igpay", label), None, 7)


def test_other_methods_are_told_of_kto():
    with pytest.raises(DataError, match="use method kto, or drop the label column"):
        recognise(["prompt", "completion", "label"])


def token_row(prompt: int, answer: int, number: int) -> TokenRow:
    return TokenRow((1, prompt, answer, 2), (False, False, True, True), number)


def test_mismatched_rows_answer_the_prompt_before():
    rows = [token_row(10, 20, 0), token_row(11, 21, 1), token_row(12, 22, 2)]
    found = mismatched(rows, ["a", "b", "c"])
    assert [other.input_ids for other in found] == [(1, 10, 22, 2), (1, 11, 20, 2), (1, 12, 21, 2)]
    assert [other.row_number for other in found] == [0, 1, 2] and found[0].trained == rows[0].trained


def test_mismatched_rows_of_several_answers_to_a_prompt():
    """a has the answers 20 and 21, b 30, 31 and 32: none meets an answer to its own prompt."""
    rows = [
        token_row(10, 20, 0),
        token_row(11, 30, 1),
        token_row(10, 21, 2),
        token_row(11, 31, 3),
        token_row(11, 32, 4),
    ]
    found = mismatched(rows, ["a", "b", "a", "b", "b"])
    assert [other.input_ids[2] for other in found] == [30, 20, 31, 21, 20]


def test_mismatched_rows_are_cut_at_the_limit_and_a_lone_prompt_keeps_its_answers():
    short, long = token_row(10, 20, 0), TokenRow((1, 11, *range(30, 40)), (False,) * 2 + (True,) * 10, 1)
    found = mismatched([short, long], ["a", "b"], max_length=6)
    assert found[0].input_ids == (1, 10, 30, 31, 32, 33) and len(found[0].trained) == 6
    assert mismatched([short], ["a"])[0].input_ids == short.input_ids
    assert mismatched([], []) == []


def test_rows_and_report(tmp_path, renderer):
    data = write(tmp_path, [row("a b", "c"), row("a b", "d", False), row("e f", "g"), row("e f", "g", False)])
    found = prepare(data, None, renderer=renderer, reads="judged", max_length=256)
    assert [one.desirable for one in found.train] == [True, False, True, False]
    for one in found.train:
        text = renderer.tokenizer.decode(one.mismatched.input_ids)
        own, other = ("a b", "g") if one.row_number < 3 else ("e f", "c" if one.desirable else "d")
        assert own in text and f"assistant\n{other}" in text
    assert len(found.train_examples) == 2  # those that are wanted
    report = found.train_report.to_dict()
    assert (report["desirable"], report["undesirable"], report["prompts"]) == (2, 2, 2)
    assert report["contradicting_rows"] == 2 and report["rows_with_trained_end"] == 4
    assert any("labelled true and false" in warning for warning in found.warnings)


def test_answers_to_one_prompt_stay_on_one_side(tmp_path, renderer):
    rows = [row(f"say {word}", answer, label) for word in "abcdef" for answer, label in (("yes", True), ("no", False))]
    found = prepare(write(tmp_path, rows), None, renderer=renderer, eval_share=0.3, reads="judged", max_length=256)
    assert len(found.eval) == 4 and len(found.train) == 8
    assert found.train_report.to_dict()["prompts_also_in_test"] == 0


def test_labels_of_one_kind_and_long_answers(tmp_path, renderer):
    data = write(tmp_path, [row("a", "b"), row("c", "d e f g h i j k l m n o p q r s t u v w x y z")])
    with pytest.raises(DataError, match=r"1 row \(2\) longer than 40 tokens .*data.too_long: drop"):
        prepare(data, None, renderer=renderer, reads="judged", max_length=40)
    with pytest.raises(DataError, match="another answer than the one that was judged"):
        prepare(data, None, renderer=renderer, reads="judged", max_length=40, too_long="cut")
    found = prepare(data, None, renderer=renderer, reads="judged", max_length=40, too_long="drop")
    assert len(found.train) == 1 and any("every label is true" in warning for warning in found.warnings)


def test_data_check_takes_the_file_for_kto(tmp_path, tiny_llama):
    data = write(tmp_path, [row("a", "b"), row("c", "d", False)])
    done = CliRunner().invoke(cli, ["data", "check", data, "--model.name", str(tiny_llama)])
    assert done.exit_code == 0, done.output
    assert "2 (unpaired): 1 desirable, 1 undesirable, to 2 prompts" in done.output
    shown = CliRunner().invoke(cli, ["data", "show", data, "--model.name", str(tiny_llama), "--rows", "2"])
    assert shown.exit_code == 0 and "undesirable" in shown.output, shown.output
