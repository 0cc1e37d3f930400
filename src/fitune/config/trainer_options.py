"""The ``trainer:`` section: fields of `transformers.TrainingArguments` by their own names, checked as strictly.

In: name → value. Out: name → value in the field's type, or faults. Imports transformers when there is one to check.
"""

from __future__ import annotations

import contextlib
from dataclasses import fields
from functools import cache
from typing import cast, get_type_hints

from fitune.config.values import shown
from fitune.config.yaml_source import Given
from fitune.errors import did_you_mean

_BATCH = "fitune splits train.batch_size into forward passes of train.micro_batch_size"
_PRECISION = "mixed precision follows from the dtype of the weights"
_FOLDER = "files go into the run folder"
_BEST = "fitune keeps the best checkpoint itself"
_SAVING = "checkpoints must be complete, so that a killed run can be resumed"
_MASKS = "fitune computes the loss from its own masks"
_HUB = "fitune does not upload while it trains; push the result with `fitune push RUN --to ORG/NAME`"
_PROCESS = "fitune trains in one process for now"

# Field → (our setting, or None when there is none; why it cannot be set here).
OWNED: dict[str, tuple[str | None, str]] = {
    "output_dir": ("run.folder", _FOLDER),
    "run_name": ("run.name", _FOLDER),
    "per_device_train_batch_size": ("train.micro_batch_size", _BATCH),
    "per_device_eval_batch_size": ("train.micro_batch_size", _BATCH),
    "gradient_accumulation_steps": ("train.batch_size", _BATCH),
    "auto_find_batch_size": ("train.micro_batch_size", _BATCH),
    "num_train_epochs": ("train.epochs", "it has a setting of its own"),
    "max_steps": ("train.max_steps", "it has a setting of its own"),
    "learning_rate": ("train.learning_rate", "it has a setting of its own"),
    "lr_scheduler_type": ("train.lr_scheduler", "it has a setting of its own"),
    "warmup_steps": ("train.warmup_ratio", "warm-up is a share of the steps"),
    "optim": ("train.optimizer", "the memory plan must know it"),
    "weight_decay": ("train.weight_decay", "it has a setting of its own"),
    "max_grad_norm": ("train.max_grad_norm", "it has a setting of its own"),
    "seed": ("train.seed", "one seed is used for everything"),
    "data_seed": ("train.seed", "one seed is used for everything"),
    "gradient_checkpointing": ("train.gradient_checkpointing", "the memory plan must know it"),
    "gradient_checkpointing_kwargs": ("train.gradient_checkpointing", "the memory plan must know it"),
    "activation_checkpointing": ("train.gradient_checkpointing", "the memory plan must know it"),
    "activation_checkpointing_kwargs": ("train.gradient_checkpointing", "the memory plan must know it"),
    "bf16": ("model.precision", _PRECISION),
    "fp16": ("model.precision", _PRECISION),
    "bf16_full_eval": ("model.precision", _PRECISION),
    "fp16_full_eval": ("model.precision", _PRECISION),
    "use_cpu": ("model.device", "the device is chosen before the model is loaded"),
    "use_cache": (None, "training uses no KV cache"),
    "logging_strategy": ("run.log_steps", "it has a setting of its own"),
    "logging_steps": ("run.log_steps", "it has a setting of its own"),
    "logging_nan_inf_filter": (None, "a loss that is not finite stops the run"),
    "disable_tqdm": (None, "fitune prints the progress itself"),
    "report_to": ("run.report_to", "it has a setting of its own"),
    "eval_strategy": ("eval.every_steps", "it has a setting of its own"),
    "eval_steps": ("eval.every_steps", "it has a setting of its own"),
    "eval_on_start": (None, "fitune measures the base before step one in any case"),
    "prediction_loss_only": (None, _MASKS),
    "batch_eval_metrics": (None, _MASKS),
    "include_for_metrics": (None, _MASKS),
    "save_strategy": ("run.checkpoint_steps", _SAVING),
    "save_steps": ("run.checkpoint_steps", _SAVING),
    "save_only_model": (None, _SAVING),
    "save_total_limit": ("run.keep_checkpoints", _SAVING),
    "ignore_data_skip": (None, "a resumed run continues with the rows it has not seen"),
    "restore_callback_states_from_checkpoint": (None, _SAVING),
    "resume_from_checkpoint": (None, "use `fitune train --resume RUN`"),
    "load_best_model_at_end": ("eval.best_metric", _BEST),
    "metric_for_best_model": ("eval.best_metric", _BEST),
    "greater_is_better": ("eval.best_metric", _BEST),
    "remove_unused_columns": (None, _MASKS),
    "label_names": (None, _MASKS),
    "label_smoothing_factor": (None, _MASKS),
    "train_sampling_strategy": (None, "the order of rows follows from train.seed, so that a resumed run repeats it"),
    "length_column_name": (None, "the order of rows follows from train.seed, so that a resumed run repeats it"),
    "dataloader_pin_memory": (None, "it follows from the device"),
    "dataloader_drop_last": (None, "every row is trained on"),
    "use_liger_kernel": (None, _MASKS),
    "liger_kernel_config": (None, _MASKS),
    "push_to_hub": (None, _HUB),
    "hub_token": (None, _HUB),
    "hub_private_repo": (None, _HUB),
    "hub_model_id": (None, _HUB),
    "hub_strategy": (None, _HUB),
    "hub_always_push": (None, _HUB),
    "hub_revision": (None, _HUB),
    "do_train": (None, "use `fitune train`"),
    "do_eval": (None, "use `fitune evaluate`"),
    "do_predict": (None, "use `fitune generate`"),
    "local_rank": (None, _PROCESS),
    "fsdp": (None, _PROCESS),
    "fsdp_config": (None, _PROCESS),
    "deepspeed": (None, _PROCESS),
    "parallelism_config": (None, _PROCESS),
}


def fit_trainer(given: dict[str, Given]) -> tuple[dict[str, object], list[str]]:
    """Values of the section in their fields' types, and the faults; keys of ``given`` without ``trainer.``."""
    values: dict[str, object] = {}
    faults: list[str] = []
    unowned: dict[str, Given] = {}
    for name, one in given.items():
        if name in OWNED:
            ours, why = OWNED[name]
            faults.append(f"{one.place} cannot be set: {why}" + (f"; set {ours}" if ours else ""))
        else:
            unowned[name] = one
    for name, one in unowned.items():
        kinds = _kinds()
        if name not in kinds:
            near = did_you_mean(name, kinds) or "; see the documentation of TrainingArguments for the names"
            faults.append(f"{one.place} is not a field of transformers.TrainingArguments{near}")
            continue
        try:
            values[name] = _fit(kinds[name], one.value, one.is_text)
        except ValueError as error:
            faults.append(f"{one.place} is {shown(one.value)}; {error}")
    return values, faults


@cache
def _kinds() -> dict[str, object]:
    from transformers import TrainingArguments

    hints = get_type_hints(TrainingArguments)
    return {field.name: hints[field.name] for field in fields(TrainingArguments)}


def _fit(kind: object, value: object, is_text: bool) -> object:
    """The value, strictly of the field's type; text of the command line and numbers such as 1e-3 are read first."""
    import yaml
    from pydantic import TypeAdapter, ValidationError

    adapter = TypeAdapter(cast("type[object]", kind))
    tries = [value]
    if is_text and isinstance(value, str):
        tries = [yaml.safe_load(value), *tries]
        if "," in value:
            tries.append([part.strip() for part in value.split(",")])
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            tries.insert(0, float(value))
        if is_text and value.lstrip("-").isdigit():
            tries.insert(0, int(value))
    for candidate in tries:
        try:
            return adapter.validate_python(candidate, strict=True)
        except ValidationError:
            continue
    raise ValueError(f"transformers expects {_named(kind)}")


def _named(kind: object) -> str:
    names: dict[object, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, str(kind).replace("typing.", "").replace("NoneType", "None").replace("None", "null"))
