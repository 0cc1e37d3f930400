"""Settings from YAML and flags: values, and every fault with its place and remedy."""

from __future__ import annotations

import pytest
import yaml

from fitune.config.fields import all_fields
from fitune.config.sections import Settings
from fitune.config.settings_loader import load_settings
from fitune.errors import SettingsError


def faults(text=None, tmp_path=None, **overrides):
    path = None
    if text is not None:
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load_settings(path, {key.replace("__", "."): value for key, value in overrides.items()})
    return [fault.replace(f"{path.parent}/", "") if path else fault for fault in caught.value.faults]


def test_no_file_gives_the_defaults():
    assert load_settings() == Settings()


def test_a_file_holds_differences_and_flags_are_stronger(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("lora: {rank: 4, alpha: 8}\ntrain:\n  learning_rate: 1e-3\n")
    settings = load_settings(path, {"lora.rank": "32", "train.epochs": 2})
    assert (settings.lora.rank, settings.lora.alpha, settings.train.epochs) == (32, 8.0, 2.0)
    assert settings.train.learning_rate == 1e-3  # YAML 1.1 reads 1e-3 as text


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("lora.targets", "q_proj,v_proj", ["q_proj", "v_proj"]),
        ("lora.targets", "all-linear", "all-linear"),
        ("data.columns", "prompt=question,completion=answer", {"prompt": "question", "completion": "answer"}),
        ("train.max_grad_norm", "null", None),
        ("train.gradient-checkpointing", "true", True),
        ("train.learning_rate", "1e-3", 1e-3),
        ("run.report_to", "wandb,trackio", ["wandb", "trackio"]),
        ("run.name", "123", "123"),
        ("data.system", "", ""),
    ],
)
def test_text_of_the_command_line_is_read(key, text, value):
    section, name = key.replace("-", "_").split(".")
    assert getattr(getattr(load_settings(None, {key: text}), section), name) == value


def test_all_faults_come_at_once_each_with_its_place(tmp_path):
    text = "lora:\n  rank: 0\n  alpah: 3\ndata: {eval_share: 2}\nruns: {name: a}\n"
    assert faults(text, tmp_path, lora__init="gausian") == [
        "run.yaml:2: lora.rank is 0; use 1 or more, for example 16",
        'run.yaml:3: lora.alpah is not a setting (did you mean "alpha"?)',
        "run.yaml:4: data.eval_share is 2; use 0 to 1, for example 0.05",
        'run.yaml:5: runs is not a setting (did you mean "run"?)',
        '--lora.init is "gausian" (did you mean "gaussian"?); use one of default, gaussian, pissa, loftq, debug',
    ]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("train.lr", "fitune calls it train.learning_rate"),
        ("train.num_train_epochs", "fitune calls it train.epochs"),
        ("lora_r", "fitune calls it lora.rank"),
        ("per_device_train_batch_size", "fitune calls it train.micro_batch_size"),
        ("train.rank", "write lora.rank"),
        ("learning_rate", "write train.learning_rate"),
        ("trian.seed", "write train.seed"),
        ("lorra.zzz", 'no section lorra (did you mean "lora"?)'),
        ("eval.pateince", 'did you mean "patience"'),
        ("data.xyzzy", "data has train, eval"),
    ],
)
def test_a_key_that_is_no_setting_is_led_to_one_that_is(key, expected):
    [fault] = faults(**{key.replace(".", "__"): "1"})
    assert fault.startswith(f"--{key} is not a setting") and expected in fault


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "run.yaml is empty"),
        ("# only a comment\n", "run.yaml is empty"),
        ("- a\n", "run.yaml:1: the file is not a mapping"),
        ("lora: {rank: 1\ntrain: x", "run.yaml:2: not valid YAML"),
        ("lora:\n  rank: 1\n  rank: 2\n", "run.yaml:3: lora.rank is written twice (first in line 2)"),
        ("lora: {rank: 1}\nlora: {alpha: 2}\n", "run.yaml:2: lora is written twice (first in line 1)"),
        ("lora.rank: 3\n", "run.yaml:1: lora.rank has a dot; in YAML write `lora:`"),
        ("lora: 3\n", 'run.yaml:1: lora is "3"; it is a section'),
        ("run: {name: 7}\n", 'run.name is 7; write it in quotes: "7"'),
        ('lora: {rank: "8"}\n', 'lora.rank is "8"; write it without quotes'),
        ("lora: {rank: true}\n", "lora.rank is true; use a whole number"),
        ("lora: {rank: 1.5}\n", "lora.rank is 1.5; use a whole number"),
        ("lora: {alpha: .inf}\n", "lora.alpha is inf; use above 0"),
        ("lora: {dropout: 1.0}\n", "lora.dropout is 1; use 0 to 1 excluding 1"),
        ("lora: {rank: null}\n", "lora.rank is null; use a whole number"),
        ("run: {report_to: [wandbb]}\n", 'run.report_to contains "wandbb" (did you mean "wandb"?)'),
        ("data: {columns: {prompt: a, prompt: b}}\n", "'prompt' is written twice"),
    ],
)
def test_faults_of_the_file(text, expected, tmp_path):
    [fault] = faults(text, tmp_path)
    assert expected in fault


def test_a_file_that_is_absent_or_not_text(tmp_path):
    with pytest.raises(SettingsError, match=r"none\.yaml does not exist"):
        load_settings(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("run: {name: é}".encode("latin-1"))
    with pytest.raises(SettingsError, match="not UTF-8"):
        load_settings(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"train.activation_offloading": True}, "train.gradient_checkpointing is false, so no layer keeps its input"),
        ({"train.micro_batch_size": 3}, "train.micro_batch_size is 3, which does not divide train.batch_size 8"),
        ({"data.loss_on": "response_template"}, "data.response_template is null"),
        ({"data.response_template": "A:"}, "set data.loss_on to response_template"),
        ({"method": "lm", "data.loss_on": "completion"}, "method lm trains on all tokens"),
        ({"eval.best_metric": "chrf", "eval.samples": 0}, "needs generated answers"),
        ({"eval.patience": 2, "data.eval_share": 0}, "there are no held-out rows"),
        ({"train.tuning": "full", "lora.rank": 4}, "lora.rank is set, and train.tuning is full"),
        ({"data.eval": "a.jsonl", "data.eval_share": 0.2}, "remove one of the two"),
        ({"data.hub_split": "test"}, "no data comes from the hub"),
        ({"model.attention": "flash_attention_2", "model.device": "cpu"}, "needs a GPU"),
        ({"run.name": "a/b"}, "one folder name without slashes"),
        ({"lora.targets": []}, "is an empty list"),
        ({"export.to": ["adapter"], "train.tuning": "full"}, "which has no adapter; use merged"),
        ({"export.to": ["gguf"], "lora.init": "loftq", "model.quantization": "nf4"}, "only fits its quantized base"),
        ({"export.gguf_type": "q8_0", "export.to": ["merged"]}, "has neither gguf nor ollama"),
    ],
)
def test_settings_that_do_not_go_together(overrides, expected):
    with pytest.raises(SettingsError) as caught:
        load_settings(None, overrides)
    assert len(caught.value.faults) == 1 and expected in caught.value.faults[0]


def test_a_faulty_value_makes_no_second_fault():
    assert len(faults(train__batch_size="x", train__micro_batch_size="3")) == 1


def test_a_runs_own_settings_load_again(tmp_path):
    # The run folder holds every setting, also those of LoRA in a full fine-tuning.
    settings = load_settings(None, {"train.tuning": "full"})
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    assert load_settings(tmp_path / "all.yaml") == settings


def test_fields_of_transformers_are_checked_as_strictly():
    assert load_settings(None, {"trainer.adam_beta2": "0.95", "trainer.full_determinism": "false"}).trainer == {
        "adam_beta2": 0.95,
        "full_determinism": False,
    }
    found = faults(
        trainer__adam_beta3="1",
        trainer__adam_beta2="x",
        trainer__learning_rate="1",
        trainer__dataloader_num_workers="a",
    )
    assert found == [
        "--trainer.learning_rate cannot be set: it has a setting of its own; set train.learning_rate",
        '--trainer.adam_beta3 is not a field of transformers.TrainingArguments (did you mean "adam_beta2"?)',
        '--trainer.adam_beta2 is "x"; transformers expects a number',
        '--trainer.dataloader_num_workers is "a"; transformers expects a whole number',
    ]


def test_what_training_decides_itself_is_refused_in_the_trainer_section(tmp_path):
    from dataclasses import fields

    from transformers import TrainingArguments

    from fitune.config.trainer_options import OWNED
    from fitune.trainers.arguments import training_arguments

    # A name that transformers no longer knows would be dead weight in the table.
    assert set(OWNED) <= {field.name for field in fields(TrainingArguments)}
    assert {ours for ours, _ in OWNED.values() if ours} <= set(all_fields())
    # The names that training_arguments writes are constants of its code, alone or as the keys of a dict display.
    constants = training_arguments.__code__.co_consts
    written = {word for part in constants for word in (part if isinstance(part, tuple) else (part,))}
    decided = written & {field.name for field in fields(TrainingArguments)}
    assert {"learning_rate", "output_dir", "logging_nan_inf_filter", "label_names"} <= decided
    assert decided <= set(OWNED)


def test_every_setting_has_a_text():
    assert not [key for key, field in all_fields().items() if not field.doc]
    assert not [key for key, field in all_fields().items() if not (field.kinds or field.choices)]
