"""A key that is no setting → the nearest thing that is one.

In: an unknown dotted key. Out: the remedy, as the end of a fault: misspelt, in another section, or another tool's name.
"""

from __future__ import annotations

from collections.abc import Mapping

from fitune.config.fields import all_fields, sections
from fitune.earlier_names import RENAMED
from fitune.errors import did_you_mean

# Names that people bring from transformers, peft, trl, axolotl, unsloth, llama-factory → ours.
ELSEWHERE = {
    "lr": "train.learning_rate",
    "base_model": "model.name",
    "model": "model.name",
    "model_id": "model.name",
    "model_name": "model.name",
    "model_name_or_path": "model.name",
    "tokenizer": "model.name",
    "torch_dtype": "model.precision",
    "dtype": "model.precision",
    "bf16": "model.precision",
    "fp16": "model.precision",
    "load_in_4bit": "model.quantization",
    "load_in_8bit": "model.quantization",
    "bnb_4bit_quant_type": "model.quantization",
    "bnb_4bit_use_double_quant": "model.double_quant",
    "double_quantization": "model.double_quant",
    "llm_int8_skip_modules": "model.unquantized",
    "attn_implementation": "model.attention",
    "flash_attention": "model.attention",
    "use_cpu": "model.device",
    "dataset": "data.train",
    "datasets": "data.train",
    "dataset_name": "data.train",
    "train_file": "data.train",
    "eval_dataset": "data.eval",
    "validation_file": "data.eval",
    "val_set_size": "data.eval_share",
    "test_size": "data.eval_share",
    "max_seq_length": "data.max_length",
    "max_seq_len": "data.max_length",
    "sequence_len": "data.max_length",
    "cutoff_len": "data.max_length",
    "block_size": "data.max_length",
    "completion_only_loss": "data.loss_on",
    "assistant_only_loss": "data.loss_on",
    "train_on_inputs": "data.loss_on",
    "system_prompt": "data.system",
    "r": "lora.rank",
    "adapter_name_or_path": "lora.continue_from",
    "lora_model_dir": "lora.continue_from",
    "resume_adapter_file": "lora.continue_from",
    "lora_r": "lora.rank",
    "lora_rank": "lora.rank",
    "lora_alpha": "lora.alpha",
    "lora_dropout": "lora.dropout",
    "target_modules": "lora.targets",
    "lora_target": "lora.targets",
    "lora_target_modules": "lora.targets",
    "use_rslora": "lora.rslora",
    "use_dora": "lora.dora",
    "init_lora_weights": "lora.init",
    "num_train_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "iters": "train.max_steps",
    "per_device_train_batch_size": "train.micro_batch_size",
    "per_device_eval_batch_size": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.batch_size",
    "effective_batch_size": "train.batch_size",
    "lr_scheduler_type": "train.lr_scheduler",
    "warmup_steps": "train.warmup_ratio",
    "optim": "train.optimizer",
    "wd": "train.weight_decay",
    "grad_clip": "train.max_grad_norm",
    "activation_checkpointing": "train.gradient_checkpointing",
    "use_gradient_checkpointing": "train.gradient_checkpointing",
    "random_state": "train.seed",
    "eval_steps": "eval.every_steps",
    "eval_strategy": "eval.every_steps",
    "metric_for_best_model": "eval.best_metric",
    "early_stopping_patience": "eval.patience",
    "max_tokens": "eval.max_new_tokens",
    "output_dir": "run.folder",
    "run_name": "run.name",
    "save_steps": "run.checkpoint_steps",
    "save_total_limit": "run.keep_checkpoints",
    "logging_steps": "run.log_steps",
    "num_ppo_epochs": "rl.num_iterations",
}


def remedy(key: str) -> str:
    """What to write instead of an unknown key."""
    section, _, name = key.rpartition(".")
    name = name.replace("-", "_")
    same_name = [field.key for field in all_fields().values() if field.name == name and field.key != key]
    same_name += [renamed.new for old, renamed in RENAMED.items() if old.rpartition(".")[2] == name]
    if name in ELSEWHERE and ELSEWHERE[name] != key:
        return f"is not a setting; fitune calls it {ELSEWHERE[name]}"
    if same_name:
        return f"is not a setting; write {' or '.join(same_name)}"
    near_section = did_you_mean(section, sections()) if section else ""
    if section and section not in sections():
        return f"is not a setting: there is no section {section}{near_section or _known_sections()}"
    inside = [field.name for field in all_fields().values() if field.section == section]
    if not section:
        inside += list(sections())
    earlier = {old: renamed.new for old, renamed in RENAMED.items()}
    near = _meant(name, {**_last_parts(earlier, section), **dict(zip(inside, inside, strict=True))})
    if not near:
        whole = {field.name: field.key for field in all_fields().values()}
        near = _meant(name, {**{old.rpartition(".")[2]: new for old, new in earlier.items()}, **whole})
    if near:
        return f"is not a setting{near}"
    return f"is not a setting; {section or 'the top of a file'} has {', '.join(inside)}"


def _meant(name: str, words: Mapping[str, str]) -> str:
    """`did_you_mean`, with what the nearest word stands for in its place."""
    near = did_you_mean(name, words)
    return f' (did you mean "{words[near.split(chr(34))[1]]}"?)' if near else ""


def _last_parts(keys: Mapping[str, str], section: str) -> dict[str, str]:
    """Names within a section: the last parts of dotted keys → those of their values."""
    found = [(old, new) for old, new in keys.items() if old.rpartition(".")[0] == section]
    return {old.rpartition(".")[2]: new.rpartition(".")[2] for old, new in found}


def _known_sections() -> str:
    return f"; sections: {', '.join(sections())}"
