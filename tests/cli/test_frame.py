"""The command line itself: help at once, flags, errors, exit statuses."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from fitune import cli as frame
from fitune.cli.options.flags import take_settings


def run(*words, cwd=None, code=None):
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "fitune.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom fitune.cli import main\nsys.argv = ['fitune', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'peft', 'pydantic') if name in sys.modules])"
    )
    assert run(code=code).stdout.splitlines()[-1] == "[]"


def test_help_of_train_imports_nothing_heavy():
    code = (
        "import sys\nfrom fitune.cli import main\nsys.argv = ['fitune', 'train', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'datasets', 'peft', 'numpy', 'rich') if name in sys.modules])"
    )
    assert run(code=code).stdout.splitlines()[-1] == "[]"


# What a command may import before it answers: a fault of a file, or a list, waits for no library.
@pytest.mark.parametrize(
    ("words", "without"),
    [
        (["data", "check", "absent.jsonl"], {"torch", "transformers", "datasets", "peft", "numpy", "rich"}),
        (["data", "check", "odd.csv"], {"torch", "transformers", "datasets", "peft"}),
        (["train", "--data.train", "absent.jsonl"], {"torch", "transformers", "datasets", "peft", "numpy"}),
        (["train"], {"torch", "transformers", "datasets", "peft", "numpy"}),
        (["runs", "list"], {"torch", "transformers", "datasets", "peft", "numpy", "pydantic"}),
        (["adapters", "list"], {"torch", "transformers", "datasets", "peft", "pydantic"}),
        (
            ["data", "check", "good.jsonl", "--model.name", "MODEL"],
            {"peft", "datasets", "transformers.modeling_utils", "bitsandbytes"},
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_command_imports(tmp_path, tiny_llama, words, without):
    (tmp_path / "odd.csv").write_text("colour,shape\nred,round\n")
    (tmp_path / "good.jsonl").write_text(json.dumps({"prompt": "the pig", "completion": "eats"}) + "\n")
    words = [str(tiny_llama) if word == "MODEL" else word for word in words]
    code = (
        f"import sys\nfrom fitune.cli import main\nsys.argv = ['fitune', *{words!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {sorted(without)!r} if name in sys.modules])"
    )
    done = run(code=code, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_training_without_data_says_what_it_needs(tmp_path):
    done = run("train", "--train.max_steps", "1", cwd=tmp_path)
    assert done.returncode == 1 and "--data.train FILE" in done.stderr and "fitune demo" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_help_answers_in_half_a_second():
    # The best of five: the machine may be busy with other tests.
    def seconds():
        start = time.perf_counter()
        run("--help")
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.5


def test_every_command_is_there_and_teaches_by_example():
    import click

    context = click.Context(frame.cli)
    names = frame.cli.list_commands(context)
    assert {"demo", "train", "chat", "generate", "evaluate", "data", "runs", "settings"} <= set(names)
    for name in names:
        command = frame.cli.get_command(context, name)
        assert f"fitune {name}" in (command.help or ""), name


def test_every_setting_is_in_the_help_of_train():
    from fitune.config.fields import all_fields

    text = run("train", "--help").stdout
    assert not [key for key in all_fields() if f"--{key}" not in text]


def test_flags_are_taken_from_between_other_words():
    own = {"--resume": False, "--json": True}
    words = [
        "a.yaml",
        "--lora.rank",
        "32",
        "--json",
        "--train.gradient-checkpointing",
        "--resume",
        "--x",
        "--run.name=b",
    ]
    overrides, rest = take_settings(words, own)
    assert overrides == {"lora.rank": "32", "train.gradient_checkpointing": "true", "run.name": "b"}
    assert rest == ["a.yaml", "--json", "--resume", "--x"]


def test_a_switch_does_not_swallow_the_recipe():
    overrides, rest = take_settings(["--lora.dora", "a.yaml", "--lora.rslora", "false"], {})
    assert (overrides, rest) == ({"lora.dora": "true", "lora.rslora": "false"}, ["a.yaml"])


def test_columns_may_be_given_one_by_one():
    words = ["--data.columns", "prompt=q", "--data.columns", "completion=a"]
    assert take_settings(words, {})[0] == {"data.columns": "prompt=q,completion=a"}


def test_misspelt_flags_come_as_one_error_without_traceback(tmp_path):
    done = run("train", "--lora.rnak", "3", "--lr", "1", "--lora.alpha", "0", cwd=tmp_path)
    assert done.returncode == 1 and "Traceback" not in done.stderr and done.stdout == ""
    assert done.stderr.startswith("error: 3 faults in the settings:")
    assert 'did you mean "rank"' in done.stderr and "train.learning_rate" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trian"], 'there is no command "trian" (did you mean "train"?)'),
        (["train", "--lora.rank"], "--lora.rank needs a value: a whole number, 1 or more"),
        (["runs", "compare", "a"], "name two runs or more"),
        (["data", "make", "klingon", "--out", "x"], "klingon"),
    ],
)
def test_wrong_usage_ends_with_status_2(words, expected):
    done = run(*words)
    assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_ends_with_status_130_and_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(**_):
        raise KeyboardInterrupt

    monkeypatch.setattr(frame.cli, "main", interrupted)
    with pytest.raises(SystemExit) as caught:
        frame.main()
    assert caught.value.code == 130 and "--resume" in capsys.readouterr().err


def test_the_generated_pages_print():
    assert json.loads(run("settings", "schema").stdout)["properties"]["lora"]
    assert "`lora.rank`" in run("settings", "reference").stdout
    assert "rank: 16" in run("settings", "example").stdout


def test_data_make_and_split(tmp_path):
    (tmp_path / "s.txt").write_text("The pig eats.\nA banana sings.\nStop the string.\n")
    assert run("data", "make", "pig-latin", "--from", "s.txt", "--out", "p.jsonl", cwd=tmp_path).returncode == 0
    rows = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["The pig eats.", "A banana sings.", "Stop the string."]
    assert run("data", "split", "p.jsonl", "--test", "0.34", cwd=tmp_path).returncode == 0
    parts = [(tmp_path / f"p.{side}.jsonl").read_text().splitlines() for side in ("train", "test")]
    assert [len(part) for part in parts] == [2, 1]
    assert run("data", "split", "p.jsonl", cwd=tmp_path).returncode == 1  # the files exist


@pytest.mark.slow
def test_data_show_and_check_speak_of_the_same_tokens(tmp_path, tiny_llama):
    rows = [{"prompt": "the pig", "completion": "eats"}, {"prompt": "a well", "completion": "on a string"}]
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = ["--model.name", str(tiny_llama), "--json"]
    shown = json.loads(run("data", "show", "d.jsonl", *model, cwd=tmp_path).stdout)
    checked = json.loads(run("data", "check", "d.jsonl", *model, cwd=tmp_path).stdout)
    assert checked["ok"] and checked["train"]["rows"] == 2
    assert checked["train"]["tokens"] == sum(len(row["tokens"]) for row in shown)
    trained = sum(token["trained"] for row in shown for token in row["tokens"])
    assert 0 < trained == checked["train"]["trained_tokens"]
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n')
    bad = run("data", "check", "bad.jsonl", *model, cwd=tmp_path)
    assert bad.returncode == 1 and json.loads(bad.stdout)["ok"] is False


def test_runs_of_an_empty_folder(tmp_path):
    done = run("runs", "list", "--json", cwd=tmp_path)
    assert (done.returncode, json.loads(done.stdout)) == (0, [])
    assert run("runs", "show", "none", cwd=tmp_path).returncode == 1
