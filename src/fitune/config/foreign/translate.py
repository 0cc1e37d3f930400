"""A config of another tool → a recipe.

In: a YAML or JSON file. Out: `Translated`: dotted settings that `load_settings` accepts, and a line for each key that has
no counterpart. Names that mean the same are those of `fitune.config.suggestions`; what has to be computed stands here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import yaml

from fitune.config.fields import all_fields
from fitune.config.foreign.named_data import axolotl_data, llama_factory_data
from fitune.config.suggestions import ELSEWHERE
from fitune.config.values import Misfit, fit
from fitune.errors import SettingsError
from fitune.methods.registry import METHODS

# Keys by which a tool is told; the first that has one wins.
MARKS = {
    "axolotl": ("base_model", "micro_batch_size", "sequence_len", "datasets"),
    "LLaMA-Factory": ("stage", "finetuning_type", "cutoff_len", "dataset_dir", "lora_target"),
    "Unsloth": ("load_in_4bit", "use_gradient_checkpointing", "random_state", "max_seq_length"),
    "TRL": ("model_name_or_path", "dataset_name", "use_peft"),
}
STAGES = {"pt": "lm", "rm": "reward"}  # LLaMA-Factory's names that are not fitune's
OPTIMIZERS = {
    "adamw_torch": "adamw", "adamw_torch_fused": "adamw", "adamw_hf": "adamw", "adamw_bnb_8bit": "adamw_8bit",
    "paged_adamw_32bit": "paged_adamw_8bit",
}  # fmt: skip
ATTENTION = {
    "fa2": "flash_attention_2", "flash_attention_2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager",
    "eager": "eager", "auto": "auto",
}  # fmt: skip
# What fitune does by itself, or what names a detail of the other tool's own machinery.
NOT_NEEDED = {
    "do_train", "do_eval", "overwrite_cache", "overwrite_output_dir", "preprocessing_num_workers", "plot_loss",
    "dataloader_num_workers", "dataset_dir", "packing", "neat_packing", "sample_packing", "eval_sample_packing",
    "pad_to_sequence_len", "dataset_prepared_path", "model_type", "tokenizer_type", "strict", "ddp_timeout", "tf32",
    "group_by_length", "use_peft", "load_in_16bit", "use_cache", "remove_unused_columns", "bnb_4bit_compute_dtype",
    "gradient_checkpointing_kwargs",
    "save_strategy", "eval_strategy", "evaluation_strategy", "per_device_eval_batch_size", "eval_batch_size", "wandb_entity",
    "wandb_watch", "wandb_log_model", "local_rank", "resume_from_checkpoint", "include_tokens_per_second", "quantization_method",
    "save_only_model", "task", "trainer", "dataset_num_proc", "fp16_full_eval", "hub_model_id", "push_to_hub",
}  # fmt: skip
Convert = Callable[[Any, Mapping[str, Any]], dict[str, object]]


@dataclass(frozen=True)
class Translated:
    """A recipe out of another tool's config."""

    tool: str
    settings: dict[str, object]
    """Dotted name → value."""
    left_out: dict[str, str] = field(default_factory=dict[str, str])
    """Key → why it has no counterpart."""


def translate(path: Path, tool: str | None = None) -> Translated:
    """The recipe of a config file.

    Args:
        tool: a key of `MARKS`; None tells it by its keys.

    Raises:
        SettingsError: no file, no mapping, or of no tool that is known.
    """
    given = read_config(path)
    known = tool or next((name for name, marks in MARKS.items() if any(mark in given for mark in marks)), None)
    if known is None:
        keys = ", ".join(list(given)[:8])
        fault = f"{path} is no config of {', '.join(MARKS)}, by its keys ({keys}); name the tool with --from"
        raise SettingsError([fault])
    settings: dict[str, object] = {}
    left_out: dict[str, str] = {}
    for key, value in given.items():
        if value is None or value == "" or key in NOT_NEEDED:
            continue
        if key in CONVERTED:
            settings |= CONVERTED[key](value, given)
        elif (name := ELSEWHERE.get(key, _same(key))) is not None and _plain(value):
            settings[name] = value
        else:
            left_out[key] = f"no counterpart; it is {json.dumps(value, ensure_ascii=False, default=str)[:80]}"
    if known == "axolotl":
        settings |= axolotl_data(given, left_out)
    elif known == "LLaMA-Factory":
        settings |= llama_factory_data(given, path, left_out)
    settings |= _batches(given) | _method(given, known)
    return Translated(known, _fitting(settings, left_out), left_out)


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a YAML or JSON file.

    Raises:
        SettingsError: it cannot be read, or is none.
    """
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError([f"{path} cannot be read: {error.strerror}"]) from error
    except yaml.YAMLError as error:
        raise SettingsError([f"{path} is neither YAML nor JSON: {' '.join(str(error).split())}"]) from error
    if not isinstance(found, dict):
        raise SettingsError([f"{path} holds no mapping of settings"])
    return cast("dict[str, Any]", found)


def _same(key: str) -> str | None:
    """A setting that has this very name in some section; None where several have."""
    found = [
        one.key for one in all_fields().values() if one.name == key and one.section in ("train", "data", "lora", "eval")
    ]
    return found[0] if len(found) == 1 else None


def _plain(value: object) -> bool:
    return isinstance(value, str | int | float | bool) or (
        isinstance(value, list) and all(isinstance(one, str) for one in cast("list[object]", value))
    )


def _fitting(settings: dict[str, object], left_out: dict[str, str]) -> dict[str, object]:
    """The settings that fitune accepts; the others are left out with the reason."""
    kept: dict[str, object] = {}
    for key, value in settings.items():
        try:
            fit(all_fields()[key], value, False)
        except Misfit as error:
            left_out[key] = f"is {json.dumps(value, ensure_ascii=False)}, which fitune does not take: {error}"
        else:
            kept[key] = value
    return kept


def missing(settings: Mapping[str, object]) -> tuple[str, ...]:
    """What the recipe still needs, or contradicts itself in, a sentence each."""
    from fitune.config.settings_loader import load_settings

    try:
        load_settings(None, settings)
    except SettingsError as error:
        return tuple(error.faults)
    return ()


def _batches(given: Mapping[str, Any]) -> dict[str, object]:
    """Rows a step: rows a pass × passes, on one device."""
    rows = given.get("per_device_train_batch_size", given.get("micro_batch_size"))
    times = given.get("gradient_accumulation_steps", 1)
    if not isinstance(rows, int) or not isinstance(times, int):
        return {}
    return {"train.batch_size": rows * times, "train.micro_batch_size": rows}


def _method(given: Mapping[str, Any], tool: str) -> dict[str, object]:
    """The method, told by its own key or by keys that only it has."""
    named = given.get("stage") or given.get("rl") or given.get("method")
    if named in ("dpo", "simpo", "orpo") and given.get("pref_loss") in ("orpo", "simpo"):
        named = given["pref_loss"]
    if named is None and "num_generations" in given:
        named = "grpo"
    if named is None and tool == "TRL" and "beta" in given:
        named = "dpo"
    method = STAGES.get(str(named), str(named))
    method = method if method in METHODS else "sft"
    found: dict[str, object] = {"method": method}
    beta = given.get("pref_beta", given.get("rl_beta", given.get("beta")))
    if beta is not None and method in ("dpo", "kto", "orpo", "simpo"):
        found[f"{method}.beta"] = beta
    if tool == "TRL" and not given.get("use_peft") and method not in ("ppo", "grpo", "reward"):
        found["train.tuning"] = "full"
    return found


def _quantized(value: Any, given: Mapping[str, Any]) -> dict[str, object]:
    four = given.get("quantization_bit") == 4 or given.get("load_in_4bit") or given.get("adapter") == "qlora"
    eight = given.get("quantization_bit") == 8 or given.get("load_in_8bit")
    return {"model.quantization": "nf4"} if four else {"model.quantization": "int8"} if eight else {}


def _targets(value: Any, given: Mapping[str, Any]) -> dict[str, object]:
    if isinstance(value, str):
        value = [one.strip() for one in value.split(",")]
    whole = value in (["all"], ["all-linear"])
    return {"lora.targets": "all-linear" if whole else list(cast("Sequence[str]", value))}


def _precision(name: str) -> Convert:
    return lambda value, given: {"model.precision": name} if value is True else {}


def _output(value: Any, given: Mapping[str, Any]) -> dict[str, object]:
    return {"run.name": Path(str(value)).name}


def _if(true: dict[str, object]) -> Convert:
    return lambda value, given: dict(true) if value else {}


CONVERTED: dict[str, Convert] = {
    **dict.fromkeys(("quantization_bit", "load_in_4bit", "load_in_8bit", "adapter"), _quantized),
    **dict.fromkeys(("lora_target", "lora_target_modules", "target_modules"), _targets),
    "lora_target_linear": _if({"lora.targets": "all-linear"}),
    "finetuning_type": lambda value, given: {"train.tuning": "full" if value == "full" else "lora"},
    "bf16": _precision("bf16"),
    "fp16": _precision("fp16"),
    "output_dir": _output,
    **dict.fromkeys(
        ("optim", "optimizer"),
        lambda value, given: {"train.optimizer": OPTIMIZERS.get(str(value), str(value))},
    ),
    **dict.fromkeys(
        ("flash_attn", "attn_implementation"),
        lambda value, given: {"model.attention": ATTENTION.get(str(value), str(value))},
    ),
    "flash_attention": _if({"model.attention": "flash_attention_2"}),
    "sdp_attention": _if({"model.attention": "sdpa"}),
    "train_on_prompt": _if({"data.loss_on": "all"}),
    "train_on_inputs": _if({"data.loss_on": "all"}),
    "mask_history": _if({"data.loss_on": "last_assistant"}),
    "pissa_init": _if({"lora.init": "pissa"}),
    "lora_modules_to_save": lambda value, given: {"lora.modules_to_save": list(value)},
    "additional_target": lambda value, given: {"lora.modules_to_save": str(value).split(",")},
    "peft_use_dora": _if({"lora.dora": True}),
    "peft_use_rslora": _if({"lora.rslora": True}),
    "use_rslora": _if({"lora.rslora": True}),
    "use_dora": _if({"lora.dora": True}),
    "max_steps": lambda value, given: {"train.max_steps": value} if isinstance(value, int) and value > 0 else {},
    "use_gradient_checkpointing": _if({"train.gradient_checkpointing": True}),
    "lr_scheduler": lambda value, given: {"train.lr_scheduler": str(value).removeprefix("cosine_with_").split("_")[0]},
    "lr_scheduler_type": lambda value, given: {"train.lr_scheduler": str(value).split("_")[0]},
    "wandb_project": _if({"run.report_to": ["wandb"]}),
    "report_to": lambda value, given: {}
    if value in ("none", "all", ["none"])
    else {"run.report_to": [value] if isinstance(value, str) else list(value)},
    "pref_ftx": lambda value, given: {"dpo.sft_weight": value} if value else {},
    "chat_template": lambda value, given: {"model.chat_template": "chatml"} if value == "chatml" else {},
    "sequence_len": lambda value, given: {"data.max_length": value, "data.too_long": "drop"},
    "cutoff_len": lambda value, given: {"data.max_length": value, "data.too_long": "cut"},
    "max_seq_length": lambda value, given: {"data.max_length": value, "data.too_long": "cut"},
    "max_length": lambda value, given: {"data.max_length": value, "data.too_long": "cut"},
    "val_size": lambda value, given: {"data.eval_share": value if value < 1 else 0.05},
    "val_set_size": lambda value, given: {"data.eval_share": value if value < 1 else 0.05},
    "dataset_name": lambda value, given: {
        "data.train": f"hub:{value}" + (f":{given['dataset_config']}" if given.get("dataset_config") else "")
    },
    "dataset_train_split": lambda value, given: {"data.hub_split": value},
    "max_completion_length": lambda value, given: {"rl.max_new_tokens": value},
    "num_generations": lambda value, given: {"rl.num_generations": value},
    "temperature": lambda value, given: {"rl.temperature": value} if "num_generations" in given else {},
    # Read together with others, by `_batches`, `_method` and the data of a tool.
    **dict.fromkeys(
        (
            "per_device_train_batch_size", "micro_batch_size", "gradient_accumulation_steps", "stage", "rl", "method",
            "pref_loss", "pref_beta", "rl_beta", "beta", "dataset", "datasets", "dataset_config", "eval_dataset", "test_datasets",
        ),
        lambda value, given: {},
    ),
}  # fmt: skip
