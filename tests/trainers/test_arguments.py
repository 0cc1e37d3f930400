"""From settings to steps and TrainingArguments."""

from __future__ import annotations

import importlib.util

import pytest

from fitune.errors import MissingExtra, SettingsError
from fitune.trainers.arguments import check_trackers, schedule_of, training_arguments


def schedule(num_rows=100, batch_size=8, micro=None, epochs=1.0, max_steps=None, warmup=0.03, every=None, saves=None):
    return schedule_of(num_rows, batch_size, micro or batch_size, epochs, max_steps, warmup, every, saves)


def arguments(folder, **changed):
    values = {
        "epochs": 1.0, "max_steps": None, "learning_rate": 1e-3, "lr_scheduler": "cosine", "optimizer": "adamw",
        "weight_decay": 0.0, "max_grad_norm": 1.0, "gradient_checkpointing": False, "seed": 1,
        "mixed_precision": "fp32", "device": "cpu", "evaluates": True, "best_metric": "loss", "log_steps": 1,
        "report_to": [], "run_name": "test", "overrides": {},
    }  # fmt: skip
    return training_arguments(folder, changed.pop("schedule", schedule()), **{**values, **changed})


def test_steps_come_from_rows_batch_and_epochs():
    # 100 rows of 8: 12 full steps and one of 4 rows
    assert (schedule().steps_per_epoch, schedule().steps) == (13, 13)
    assert schedule(epochs=2.5).steps == 33  # 32.5 rounded up
    assert schedule(max_steps=5, epochs=3).steps == 5
    assert schedule(warmup=0.1).warmup_steps == 2


@pytest.mark.parametrize(
    ("steps", "share", "warm"), [(1, 0.03, 0), (1, 1.0, 0), (2, 0.03, 1), (2, 1.0, 1), (4, 1.0, 3)]
)
def test_warm_up_leaves_the_last_step_its_full_rate(steps, share, warm):
    assert schedule(warmup=share, max_steps=steps).warmup_steps == warm


def test_evaluation_is_each_epoch_and_checkpoints_with_it_unless_said():
    assert (schedule(epochs=3).eval_steps, schedule(epochs=3).checkpoint_steps) == (13, 13)
    assert (schedule(every=4).eval_steps, schedule(every=4).checkpoint_steps) == (4, 4)
    assert (schedule(every=4, saves=2).eval_steps, schedule(every=4, saves=2).checkpoint_steps) == (4, 2)
    assert schedule(max_steps=5).eval_steps == 5


def test_micro_batches_divide_the_batch(tmp_path):
    assert (schedule(micro=2).micro_batch_rows, schedule(micro=2).accumulation) == (2, 4)
    with pytest.raises(SettingsError, match=r"micro_batch_size is 3, which does not divide train.batch_size 8; .* 2"):
        schedule(micro=3)
    made = arguments(tmp_path, schedule=schedule(micro=2))
    assert (made.per_device_train_batch_size, made.gradient_accumulation_steps) == (2, 4)


def test_the_trainer_section_overrides_and_bad_values_are_named(tmp_path):
    assert arguments(tmp_path, overrides={"adam_beta2": 0.95}).adam_beta2 == 0.95
    with pytest.raises(SettingsError, match="debug"):
        arguments(tmp_path, overrides={"debug": "everything"})


def test_nothing_of_transformers_own_progress_or_averaging_is_left(tmp_path):
    made = arguments(tmp_path)
    assert made.disable_tqdm and not made.logging_nan_inf_filter and made.prediction_loss_only
    assert made.save_total_limit is None  # ours counts only whole checkpoints


def test_without_held_out_rows_nothing_is_evaluated(tmp_path):
    made = arguments(tmp_path, evaluates=False)
    assert made.eval_strategy == "no" and made.metric_for_best_model is None


def test_a_tracker_that_is_not_installed_is_an_error_with_the_remedy(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install wandb"):
        check_trackers(["wandb"])
