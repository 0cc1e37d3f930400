"""Configs of other tools as recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from fitune.cli import cli
from fitune.config.foreign.translate import translate
from fitune.config.settings_loader import load_settings
from fitune.errors import SettingsError

LLAMA_FACTORY = """
model_name_or_path: org/model
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: mine,other
dataset_dir: data
template: llama3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
output_dir: saves/mine/lora
logging_steps: 10
save_steps: 500
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
quantization_bit: 4
val_size: 0.1
"""
AXOLOTL = """
base_model: org/model
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: org/set
    type: alpaca
  - path: more.jsonl
    type: chat_template
    field_messages: talk
sequence_len: 4096
sample_packing: true
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_target_linear: true
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 4
optimizer: paged_adamw_8bit
lr_scheduler: cosine
learning_rate: 0.0002
train_on_inputs: false
flash_attention: true
output_dir: ./outputs/out
wandb_project:
evals_per_epoch: 4
"""


def written(tmp_path: Path, text: str, name: str = "config.yaml") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_llama_factory_with_its_data_sets(tmp_path: Path):
    (tmp_path / "data").mkdir()
    info = {
        "mine": {"file_name": "mine.json", "columns": {"prompt": "question", "response": "answer"}},
        "other": {"hf_hub_url": "org/other"},
    }
    (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info))
    found = translate(written(tmp_path, LLAMA_FACTORY))
    assert found.tool == "LLaMA-Factory"
    assert found.settings == {
        "model.name": "org/model", "train.tuning": "lora", "lora.rank": 8, "lora.targets": "all-linear",
        "data.max_length": 2048, "data.too_long": "cut", "run.name": "lora", "run.log_steps": 10, "run.checkpoint_steps": 500,
        "train.learning_rate": 1e-4, "train.epochs": 3.0, "train.lr_scheduler": "cosine", "train.warmup_ratio": 0.1,
        "model.precision": "bf16", "model.quantization": "nf4", "data.eval_share": 0.1,
        "data.train": [str(tmp_path / "data" / "mine.json"), "hub:org/other"],
        "data.columns": {"instruction": "question", "output": "answer"},
        "train.batch_size": 8, "train.micro_batch_size": 1, "method": "sft",
    }  # fmt: skip
    assert set(found.left_out) == {"template", "max_samples"}


def test_axolotl(tmp_path: Path):
    found = translate(written(tmp_path, AXOLOTL))
    assert found.tool == "axolotl" and set(found.left_out) == {"evals_per_epoch"}
    settings = load_settings(None, found.settings)
    assert settings.data.train == "hub:org/set, more.jsonl" and settings.data.columns == {"messages": "talk"}
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.targets) == (32, 16, "all-linear")
    assert (settings.train.batch_size, settings.train.micro_batch_size, settings.train.epochs) == (8, 2, 4)
    assert (settings.model.quantization, settings.model.attention) == ("nf4", "flash_attention_2")
    assert (settings.train.optimizer, settings.data.max_length, settings.run.name) == ("paged_adamw_8bit", 4096, "out")


@pytest.mark.parametrize(
    ("text", "tool", "expected"),
    [
        ("model_name_or_path: m\ndataset_name: org/set\nuse_peft: true\nlora_r: 4\nbeta: 0.2\n", "TRL",
         {"method": "dpo", "dpo.beta": 0.2, "lora.rank": 4, "data.train": "hub:org/set", "model.name": "m"}),
        ("model_name_or_path: m\ndataset_name: a/b\ndataset_config: main\nnum_generations: 4\nmax_completion_length: 64\n", "TRL",
         {"method": "grpo", "rl.num_generations": 4, "rl.max_new_tokens": 64, "data.train": "hub:a/b:main"}),
        ("model_name: m\nmax_seq_length: 512\nload_in_4bit: true\nr: 16\nrandom_state: 3407\noptim: adamw_8bit\n", "Unsloth",
         {"model.quantization": "nf4", "lora.rank": 16, "train.seed": 3407, "train.optimizer": "adamw_8bit"}),
    ],
)  # fmt: skip
def test_trl_and_unsloth(tmp_path: Path, text: str, tool: str, expected: dict[str, object]):
    found = translate(written(tmp_path, text))
    assert found.tool == tool and expected.items() <= found.settings.items() and found.left_out == {}


def test_the_command_writes_a_recipe_that_loads_and_lists_the_rest(tmp_path: Path):
    result = CliRunner().invoke(cli, ["settings", "import", str(written(tmp_path, AXOLOTL))])
    assert result.exit_code == 0 and "evals_per_epoch: no counterpart" in result.stderr
    assert "# without a counterpart:\n# evals_per_epoch" in result.stdout
    (tmp_path / "recipe.yaml").write_text(result.stdout)
    assert load_settings(tmp_path / "recipe.yaml").lora.rank == 32
    assert yaml.safe_load(result.stdout)["run"]["name"] == "out"


def test_a_file_of_no_known_tool_is_refused(tmp_path: Path):
    with pytest.raises(SettingsError, match="no config of axolotl"):
        translate(written(tmp_path, "colour: red\n"))
    with pytest.raises(SettingsError, match="cannot be read"):
        translate(tmp_path / "absent.yaml")
