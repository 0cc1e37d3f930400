"""Several sources as one, with weights and forms of their own; and what is said of what was read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

import fitune
from fitune.config.settings_loader import load_settings
from fitune.data.examples import Example
from fitune.data.prepare import prepare
from fitune.data.read.mixture import MixedForm, WeightedSource, sources_in
from fitune.data.read.read_facts import ReadFacts
from fitune.data.read.recognised_form import RecognisedForm
from fitune.data.read.sources import DataOptions, Rows, convert_all, read_facts, read_source
from fitune.data.render.renderer import Renderer
from fitune.errors import DataError


@pytest.fixture
def chat(tmp_path: Path) -> str:
    """Three conversations of two answers each."""
    turns = [{"role": role, "content": role[0]} for role in ("user", "assistant", "user", "assistant")]
    return write(tmp_path / "chat.jsonl", [{"messages": turns, "score": number} for number in range(3)])


@pytest.fixture
def asked(tmp_path: Path) -> str:
    """Two instructions, each with an earlier turn."""
    rows = [{"instruction": f"q{number}", "output": "a", "history": [["old", "said"]]} for number in range(2)]
    return write(tmp_path / "asked.jsonl", rows)


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(name: str, **options: Any) -> tuple[Rows, RecognisedForm, list[Example]]:
    rows, form = read_source(name, None, DataOptions(**options))
    return rows, form, convert_all(rows, form, lambda row, number: form.to_example(row, None, number))


def facts_of(name: str, **options: Any) -> ReadFacts:
    rows, form, _ = read(name, **options)
    return read_facts(rows, form)


def test_names_with_commas_and_weights(tmp_path: Path):
    assert sources_in("a.jsonl*2, b.parquet") == [WeightedSource("a.jsonl", 2), WeightedSource("b.parquet")]
    assert sources_in("hub:a/b:c*0.5,demo:pig-latin:10") == [
        WeightedSource("hub:a/b:c", 0.5),
        WeightedSource("demo:pig-latin:10"),
    ]
    odd = tmp_path / "a, b*2.jsonl"
    odd.write_text("{}")
    assert sources_in(str(odd)) == [WeightedSource(str(odd))]
    for name, says in (
        ("a,,b", "holds an empty name"),
        ("a*0", "weight of a is 0"),
        ("a*-1,b", "use a number above 0"),
    ):
        with pytest.raises(DataError, match=says):
            sources_in(name)


def test_a_list_in_the_settings_is_the_name_with_commas(tmp_path: Path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("data:\n  train: [a.jsonl*2, b.parquet]\n")
    assert load_settings(str(recipe), {}).data.train == "a.jsonl*2, b.parquet"
    assert load_settings(None, {"data.train": "a.jsonl*2,b.parquet"}).data.train == "a.jsonl*2,b.parquet"
    recipe.write_text("data:\n  train: ['a,b.jsonl', c.jsonl]\n")
    with pytest.raises(fitune.SettingsError, match="in a list, names of files have no commas"):
        load_settings(str(recipe), {})


def test_weights_take_rows_again_or_some_of_them(chat: str):
    rows, _, examples = read(f"{chat}*2.5")
    assert len(examples) == 3 * 2 + 2 and rows.sha256.endswith("*2.5")
    assert rows.notes == ("weight 2.5: 8 rows are taken out of 3",)
    assert [row.row_number for row in read(f"{chat}*2")[2]] == [1, 1, 2, 2, 3, 3]
    some = [[row.row_number for row in read(f"{chat}*0.5", seed=seed)[2]] for seed in range(6)]
    assert all(len(rows) == 2 for rows in some) and len(set(map(tuple, some))) > 1
    assert some == [[row.row_number for row in read(f"{chat}*0.5", seed=seed)[2]] for seed in range(6)]
    with pytest.raises(DataError, match=r"has 3 rows, and of these weight 0.1 takes none; raise it"):
        read(f"{chat}*0.1")


def test_each_source_keeps_its_form_and_what_is_trained_of_it(chat: str, asked: str):
    rows, form, examples = read(f"{chat}, {asked}")
    assert isinstance(form, MixedForm) and (form.name, form.facts.loss_on) == ("messages + alpaca", "assistant")
    assert [row.row_number for row in examples] == [1, 2, 3, 4, 5]
    assert [row.untrained for row in examples] == [set()] * 3 + [{0, 1, 2}] * 2
    assert [said["content"] for said in examples[4].messages or ()] == ["old", "said", "q1", "a"]
    alone = read(f"{asked},{asked}")
    assert (alone[1].facts.loss_on, alone[2][0].untrained) == ("completion", set())
    facts = read_facts(rows, form)
    assert facts.columns_used == ("messages", "instruction", "output", "history") and facts.columns_unused == ("score",)
    assert facts.roles == {"user": 10, "assistant": 10}


def test_a_fault_names_the_file_and_its_own_row(chat: str, tmp_path: Path):
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": None}])
    with pytest.raises(DataError, match=r"row 5 has no completion: it is missing \(bad.jsonl, row 2\)"):
        read(f"{chat},{bad}")


def test_what_cannot_be_mixed_is_refused(chat: str, tmp_path: Path):
    (tmp_path / "a.txt").write_text("words\n")
    with pytest.raises(DataError, match="forms messages, text; plain text and conversations cannot be mixed"):
        read(f"{chat},{tmp_path / 'a.txt'}")
    with pytest.raises(DataError, match='maps prompt to "q", which none of the sources has'):
        read(f"{chat},{chat}", columns={"prompt": "q"})


def test_a_ranked_list_is_a_pair_for_every_two_of_its_answers(tmp_path: Path):
    for column, mapping in (("output", None), ("said", {"output": "said"})):
        rows = [{"instruction": "q", column: ["a", "b", "c"]}, {"instruction": "p", column: ["d", "e"]}]
        name = write(tmp_path / f"{column}.jsonl", rows)
        rows, form = read_source(name, None, DataOptions(reads="pairs", columns=mapping))
        pairs = convert_all(rows, form, lambda row, number, form=form: form.to_pair(row, None, number))
        assert [pair.texts for pair in pairs] == [("a", "b"), ("a", "c"), ("b", "c"), ("d", "e")]
        assert [pair.row_number for pair in pairs] == [1, 1, 1, 2]


def test_a_pair_of_a_ranked_list_that_teaches_nothing_leaves_the_others(tmp_path: Path, tiny_llama: Path):
    path = write(tmp_path / "r.jsonl", [{"instruction": "q", "output": ["a", "a", "b"]}])
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    renderer = Renderer(tokenizer, tokenizer.chat_template, (tokenizer.eos_token_id,))
    data = prepare(path, None, renderer=renderer, reads="pairs")
    assert len(data.train) == 2 and "1 pair (row 1) with two identical answers; left out" in data.train_report.warnings


@pytest.mark.parametrize("column", ["sytem", "System", "tool", "functons"])
def test_a_column_that_is_nearly_one_of_the_form_is_refused(tmp_path: Path, column: str):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = write(tmp_path / "a.jsonl", [{"messages": turns, column: "x"}])
    with pytest.raises(
        DataError, match=rf'the column "{column}" is not read \(did you mean ".*"\?\); map it with --data.col'
    ):
        read(path)


def test_the_facts_say_what_was_read_and_what_was_not(tmp_path: Path):
    turns = [{"role": "Human", "content": "a"}, {"role": "assistant", "content": " "}]
    good = [*turns, {"role": "human", "content": "a"}, {"role": "gpt", "content": "b"}]
    path = tmp_path / "a.json"
    path.write_bytes(
        json.dumps([{"messages": turns, "id": 1}, {"messages": good, "id": 2}, {"messages": turns}]).encode("utf-16")
    )
    facts = facts_of(str(path))
    assert facts == ReadFacts(
        form="messages",
        rows=3,
        encoding="utf-16",
        columns_used=("messages",),
        columns_unused=("id",),
        roles={"user": 4, "assistant": 4},
        empty_answers=(2,),
        left_out={"every answer is empty": (1, 3)},
        notes=(),
    )
    assert facts.lines() == [
        "encoding              utf-16",
        "columns read          messages",
        "columns not read      id",
        "messages              4 user, 4 assistant",
        "empty answers         1 row (2)",
        "left out              2 rows (1, 3): every answer is empty",
    ]
    assert facts.warnings == (
        "2 rows (1, 3) left out: every answer is empty",
        "1 row (2) with an empty answer, which is not trained",
    )
    assert json.loads(json.dumps(facts.to_dict()))["left_out"] == {"every answer is empty": [1, 3]}


def test_a_file_of_which_every_row_is_left_out_is_refused(tmp_path: Path):
    path = write(
        tmp_path / "a.jsonl", [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}]}]
    )
    with pytest.raises(DataError, match="no row is left to train on: every answer is empty"):
        read(path)


def test_prompts_and_pairs_carry_what_was_read(tmp_path: Path, tiny_llama: Path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    renderer = Renderer(tokenizer, tokenizer.chat_template, (tokenizer.eos_token_id,))
    pairs = write(tmp_path / "p.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "c", "id": 1}])
    data = prepare(pairs, pairs, renderer=renderer, reads="pairs")
    assert data.train_read and data.train_read.columns_unused == ("id",)
    assert data.eval_read and data.eval_read.roles == {"user": 1, "assistant": 2}
    data = prepare(pairs, None, renderer=renderer, reads="prompts")
    assert data.train_read and data.train_read.columns_used == ("prompt",) and data.eval_read is None
