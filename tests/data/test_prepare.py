"""What stops a run before a model is loaded, and what is only shown."""

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fitune.data.prepare import prepare
from fitune.data.read.sources import split_file
from fitune.data.render.renderer import Renderer
from fitune.errors import DataError


@pytest.fixture(scope="module")
def renderer(tiny_llama) -> Renderer:
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    return Renderer(tokenizer, tokenizer.chat_template, (tokenizer.eos_token_id,))


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count: int, answer: str = "igpay") -> list[dict]:
    return [{"prompt": f"pig {number}", "completion": answer} for number in range(count)]


def test_counts(tmp_path: Path, renderer: Renderer):
    data = prepare(write(tmp_path / "a.jsonl", pairs(10)), None, renderer=renderer, eval_share=0.2)
    report = data.train_report
    assert (len(data.train), len(data.eval), report.rows) == (8, 2, 8)
    assert report.trained_tokens == sum(row.num_trained for row in data.train) > 0
    assert report.rows_with_trained_end == 8 and report.rows_without_target == 0
    assert data.warnings == ()
    assert json.loads(json.dumps(report.to_dict()))["loss_on"] == "completion"
    assert any("100%" in line for line in report.lines())


def test_equal_rows_never_stand_on_both_sides(tmp_path: Path, renderer: Renderer):
    path = write(tmp_path / "a.jsonl", pairs(6) * 3)
    for seed in range(5):
        data = prepare(path, None, renderer=renderer, eval_share=0.3, seed=seed)
        train = {row.input_ids for row in data.train}
        assert not train & {row.input_ids for row in data.eval} and data.eval
        assert any("duplicates" in text for text in data.warnings)


def test_the_same_rows_and_seed_give_the_same_sides(tmp_path: Path, renderer: Renderer):
    path = write(tmp_path / "a.jsonl", pairs(20))
    one, two = (prepare(path, None, renderer=renderer, eval_share=0.3, seed=1).eval for _ in range(2))
    assert one == two
    assert prepare(path, None, renderer=renderer, eval_share=0.3, seed=2).eval != one


def test_rows_that_are_in_the_test_file_too_are_counted(tmp_path: Path, renderer: Renderer):
    train, test = write(tmp_path / "a.jsonl", pairs(5)), write(tmp_path / "b.jsonl", pairs(2))
    data = prepare(train, test, renderer=renderer)
    assert data.train_report.rows_also_in_test == 2
    assert any("2 rows are also in the held-out rows" in text for text in data.warnings)


def test_long_rows_stop_the_run_unless_a_policy_is_chosen(tmp_path: Path, renderer: Renderer):
    rows = [*pairs(3), {"prompt": "x", "completion": "xq zj " * 30}]
    path = write(tmp_path / "a.jsonl", rows)
    with pytest.raises(DataError, match=r"1 row \(4\) longer than 100 tokens .* answer tokens beyond the limit"):
        prepare(path, None, renderer=renderer, max_length=100)
    dropped = prepare(path, None, renderer=renderer, max_length=100, too_long="drop")
    assert len(dropped.train) == 3 and dropped.train_report.rows_over_limit == 1
    cut = prepare(path, None, renderer=renderer, max_length=100, too_long="cut")
    assert max(len(row.input_ids) for row in cut.train) == 100
    whole = cut.train_report.trained_tokens
    assert whole - sum(row.num_trained for row in cut.train) == cut.train_report.answer_tokens_lost > 0
    with pytest.raises(DataError, match="every row is longer than 5 tokens"):
        prepare(path, None, renderer=renderer, max_length=5, too_long="drop")


def test_nothing_to_train_on_shows_the_row_and_the_nearest_marker(tmp_path: Path, renderer: Renderer):
    path = write(tmp_path / "a.jsonl", pairs(2))
    with pytest.raises(DataError) as caught:
        prepare(
            path, None, renderer=renderer, loss_on="response_template", response_template="<|im_start|> assistant\n"
        )
    message = str(caught.value)
    assert "no row has a token to train on" in message and "igpay" in message
    assert "nearest is '<|im_start|>assistant\\ni'" in message or "<|im_start|>assistant" in message.split("nearest")[1]


def test_an_end_token_that_is_not_trained_is_said(tmp_path: Path, renderer: Renderer):
    endless = Renderer(renderer.tokenizer, "{% for m in messages %}{{ m.content }} {% endfor %}", renderer.end_ids)
    data = prepare(write(tmp_path / "a.jsonl", pairs(2)), None, renderer=endless)
    assert data.train_report.rows_with_trained_end == 0
    assert any("2 rows (1, 2) whose end token is not trained" in text for text in data.warnings)


def test_a_doubled_bos_is_said(tmp_path: Path, tiny_model):
    specials = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = AutoTokenizer.from_pretrained(tiny_model("gemma", template="gemma", specials=specials, adds_bos=True))
    doubled = Renderer(tokenizer, "<bos>" + tokenizer.chat_template, ())
    data = prepare(write(tmp_path / "a.jsonl", pairs(2)), None, renderer=doubled)
    assert data.train_report.rows_with_double_bos == 2
    assert any("two BOS tokens" in text for text in data.warnings)


def test_rare_roles_and_blank_messages_are_said(tmp_path: Path, renderer: Renderer):
    turns = [{"role": "context", "content": " "}, {"role": "assistant", "content": "igpay"}]
    data = prepare(write(tmp_path / "a.jsonl", [{"messages": turns}]), None, renderer=renderer)
    text = "\n".join(data.warnings)
    assert 'role "context" is unusual' in text and "1 row (1) with a blank message" in text


def test_rows_without_an_answer_are_listed_together(tmp_path: Path, renderer: Renderer):
    rows = [*pairs(2), *({"prompt": "x", "completion": ""} for _ in range(7))]
    with pytest.raises(DataError) as caught:
        prepare(write(tmp_path / "a.jsonl", rows), None, renderer=renderer)
    message = str(caught.value)
    assert "7 of 9 rows cannot be used" in message and "row 3 has no completion" in message and "2 more" in message


def test_lm_takes_plain_text_only(tmp_path: Path, renderer: Renderer):
    with pytest.raises(DataError, match="the method needs plain text"):
        prepare(write(tmp_path / "a.jsonl", pairs(2)), None, renderer=renderer, reads="text")
    (tmp_path / "a.txt").write_text("the pig eats\nthe dog\n")
    data = prepare(str(tmp_path / "a.txt"), None, renderer=renderer, reads="text")
    assert all(all(row.trained) for row in data.train)


def test_the_demo_task_makes_other_sentences_for_another_seed_and_none_excluded(renderer: Renderer):
    one = prepare("demo:pig-latin:30", None, renderer=renderer, seed=1)
    asked = [example.messages[1]["content"] for example in one.train_examples if example.messages]
    again = prepare("demo:pig-latin:30", None, renderer=renderer, seed=1, exclude=asked[:5])
    left = {example.messages[1]["content"] for example in again.train_examples if example.messages}
    assert len(asked) == len(set(asked)) == 30 and not left & set(asked[:5])
    with pytest.raises(DataError, match="there are demo:pig-latin, demo:pig-latin-pairs, demo:yoda"):
        prepare("demo:dutch", None, renderer=renderer)


def test_split_writes_two_files_with_every_row_once(tmp_path: Path):
    path = write(tmp_path / "a.jsonl", pairs(20))
    counts = split_file(Path(path), 0.25, 1, tmp_path / "train.jsonl", tmp_path / "test.jsonl")
    assert counts == (15, 5)
    sides = [(tmp_path / name).read_text().splitlines() for name in ("train.jsonl", "test.jsonl")]
    assert sorted(sides[0] + sides[1]) == sorted(Path(path).read_text().splitlines())
    with pytest.raises(DataError, match="exists already"):
        split_file(Path(path), 0.25, 1, tmp_path / "train.jsonl", tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="use a share between 0 and 1"):
        split_file(Path(path), 1.5, 1, tmp_path / "d.jsonl", tmp_path / "e.jsonl")
