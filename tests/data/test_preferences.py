"""Preference rows: every layout, the prompt found, the check's counts, pairs that teach nothing left out."""

from __future__ import annotations

import json
import random

import pytest
from click.testing import CliRunner
from transformers import AutoTokenizer

from fitune.cli import cli
from fitune.data.prepare import prepare, rows_to_show
from fitune.data.read.recognise import recognise
from fitune.data.read.sources import DataOptions
from fitune.data.render.renderer import Renderer
from fitune.demo.pig_latin import to_pig_latin
from fitune.demo.pig_latin_slips import with_slips
from fitune.errors import DataError


@pytest.fixture(scope="module")
def renderer(tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    return Renderer(tokenizer, tokenizer.chat_template, (tokenizer.convert_tokens_to_ids("<|im_end|>"),))


def pair_of(row, system=None):
    return recognise(list(row), kind="pairs").to_pair(row, system, 7)


def said(role, content):
    return {"role": role, "content": content}


ASKED, GOOD, BAD = said("user", "two and two?"), said("assistant", "four"), said("assistant", "five")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "two and two?", "chosen": "four", "rejected": "five"},
        {"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"prompt": "two and two?", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        {"chosen": "two and two? four", "rejected": "two and two? five"},
        {
            "chosen": "\n\nHuman: two and two?\n\nAssistant: four",
            "rejected": "\n\nHuman: two and two?\n\nAssistant: five",
        },
    ],
    ids=["text", "messages", "implicit", "both", "implicit text", "hh"],
)
def test_every_layout_gives_the_same_pair(row):
    pair = pair_of(row)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.row_number) == ((ASKED,), (GOOD,), (BAD,), 7)


def test_a_conversation_parts_at_the_first_message_that_differs():
    more = [said("user", "sure?"), said("assistant", "yes")]
    pair = pair_of({"chosen": [ASKED, GOOD, *more], "rejected": [ASKED, GOOD, more[0], said("assistant", "no")]}, "sys")
    assert pair.prompt == (said("system", "sys"), ASKED, GOOD, more[0])
    assert pair.chosen == (more[1],)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"chosen": "four", "rejected": "five"}, "no prompt"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "no prompt"),
        ({"chosen": [ASKED, GOOD], "rejected": [said("user", "else"), BAD]}, "no first message in common"),
        (
            {"prompt": "other", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
            "is not what chosen and rejected begin",
        ),
        ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "use the same type for both"),
        ({"prompt": "a", "chosen": None, "rejected": "b"}, "no chosen"),
        ({"chosen": [ASKED, said("user", "x")], "rejected": [ASKED, said("user", "y")]}, "end with an answer"),
    ],
)
def test_what_is_no_pair_is_said(row, says):
    with pytest.raises(DataError, match=says):
        pair_of(row)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_check_finds_pairs_that_teach_nothing(tmp_path, renderer):
    rows = [
        {"prompt": "one", "chosen": "good", "rejected": "bad"},
        {"prompt": "two", "chosen": "same", "rejected": "same "},
        {"prompt": "three", "chosen": "full", "rejected": " "},
        {"prompt": "four", "chosen": "yes", "rejected": "yes, and more"},
        {"prompt": "one", "chosen": "good", "rejected": "bad"},
    ]
    data = prepare(write(tmp_path / "pairs.jsonl", rows), None, renderer=renderer, reads="pairs")
    report = data.train_report
    assert (report.equal_pairs, report.empty_pairs, report.pairs_that_differ_in_length_only) == (1, 1, 1)
    assert report.duplicate_rows == 1
    assert [row.row_number for row in data.train] == [1, 4, 5]
    said = " ".join(report.warnings)
    assert "row 2" in said and "row 3" in said and "row 4" in said
    assert "teach nothing         1 pairs are equal, 1 have an empty answer" in "\n".join(report.lines())


def test_only_the_answers_are_trained_and_rows_end_with_the_end_token(tmp_path, renderer):
    rows = [{"prompt": "say hi", "chosen": "hi", "rejected": "ho"}]
    (pair,) = prepare(write(tmp_path / "p.jsonl", rows), None, renderer=renderer, reads="pairs").train
    for row, answer in ((pair.chosen, "hi"), (pair.rejected, "ho")):
        trained = [token for token, on in zip(row.input_ids, row.trained, strict=True) if on]
        assert renderer.tokenizer.decode(trained) == f"{answer}<|im_end|>"
        assert row.input_ids[-1] in renderer.end_ids
        assert list(row.input_ids[: -len(trained)]) == renderer.prompt_ids([said("user", "say hi")])


def test_pairs_of_one_prompt_stay_on_one_side(tmp_path, renderer):
    rows = [{"prompt": f"p{number % 5}", "chosen": f"a{number}", "rejected": f"b{number}"} for number in range(20)]
    data = prepare(write(tmp_path / "p.jsonl", rows), None, renderer=renderer, reads="pairs", eval_share=0.4)
    prompts = [
        {example.messages[-2]["content"] for example in side} for side in (data.train_examples, data.eval_examples)
    ]
    assert len(data.eval) == 8 and not prompts[0] & prompts[1]


def test_length_that_gives_the_better_answer_away_is_said(tmp_path, renderer):
    rows = [{"prompt": f"p{number}", "chosen": "x" * 30 + str(number), "rejected": "no"} for number in range(25)]
    report = prepare(write(tmp_path / "p.jsonl", rows), None, renderer=renderer, reads="pairs").train_report
    assert any("could learn nothing but length" in text for text in report.warnings)
    assert report.chosen_is_longer == 1.0


def test_a_pair_over_the_limit_stops_the_run_or_is_left_out(tmp_path, renderer):
    rows = [{"prompt": "p", "chosen": "a" * 200, "rejected": "b"}, {"prompt": "q", "chosen": "c", "rejected": "d"}]
    path = write(tmp_path / "p.jsonl", rows)
    for too_long in ("error", "cut"):
        with pytest.raises(DataError, match=r"1 pair \(row 1\) with a side longer than 40 tokens"):
            prepare(path, None, renderer=renderer, reads="pairs", max_length=40, too_long=too_long)
    kept = prepare(path, None, renderer=renderer, reads="pairs", max_length=40, too_long="drop")
    assert [row.row_number for row in kept.train] == [2]


def test_rows_without_pairs_are_refused_with_what_is_needed(tmp_path, renderer):
    path = write(tmp_path / "p.jsonl", [{"prompt": "a", "completion": "b"}])
    with pytest.raises(DataError, match="needs pairs of a chosen and a rejected answer"):
        prepare(path, None, renderer=renderer, reads="pairs")


def test_the_demo_pairs_are_right_against_slightly_wrong(renderer):
    generator = random.Random(0)
    sentence = "The string of eight quick yellow trucks is in a box."
    right, seen = to_pig_latin(sentence).split(), set()
    for _ in range(200):
        made = with_slips(sentence, generator).split()
        wrong = [place for place, (a, b) in enumerate(zip(right, made, strict=True)) if a != b]
        assert 1 <= len(wrong) <= 3
        seen |= {made[place] for place in wrong if right[place] == "ingstray"}
    assert {"stringay", "ingstr", "ringstay", "ingstrway", "string"} <= seen


def test_prompts_come_out_of_rows_with_answers_too(tmp_path, renderer):
    rows = [{"prompt": "a", "completion": "b", "kind": 3}, {"prompt": "c", "completion": "d", "kind": 4}]
    data = prepare(write(tmp_path / "p.jsonl", rows), None, renderer=renderer, reads="prompts")
    first = data.train[0]
    assert (first.reference, first.columns["kind"], first.row_number) == ("b", 3, 1)
    assert list(first.input_ids) == renderer.prompt_ids([said("user", "a")])
    assert data.train_report.rows_with_reference == 2
    alone = prepare(write(tmp_path / "q.jsonl", [{"prompt": "a"}]), None, renderer=renderer, reads="prompts").train[0]
    assert alone.reference is None
    with pytest.raises(DataError, match="longer than 3 tokens"):
        prepare(str(tmp_path / "q.jsonl"), None, renderer=renderer, reads="prompts", max_length=3)


def test_both_sides_of_a_pair_are_shown(tmp_path, renderer):
    path = write(tmp_path / "p.jsonl", [{"prompt": "say hi", "chosen": "hi", "rejected": "ho"}])
    shown = rows_to_show(path, renderer, DataOptions(reads="pairs"), 3)
    assert [side for side, _ in shown] == ["chosen", "rejected"]
    (_, row) = shown[1]
    assert (
        renderer.tokenizer.decode([t for t, on in zip(row.input_ids, row.trained, strict=True) if on]) == "ho<|im_end|>"
    )
    ((side, prompt),) = rows_to_show(path, renderer, DataOptions(reads="prompts"), 1)
    assert side == "prompt" and not any(prompt.trained)


def test_the_command_takes_a_file_of_pairs_for_pairs(tmp_path, tiny_llama):
    path = write(
        tmp_path / "p.jsonl",
        [{"prompt": "a", "chosen": "b", "rejected": "b"}, {"prompt": "c", "chosen": "d", "rejected": "e"}],
    )
    result = CliRunner().invoke(cli, ["data", "check", path, "--model.name", str(tiny_llama), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["train"]["equal_pairs"] == 1
