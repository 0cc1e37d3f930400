"""The trainer: accumulation, evaluation, checkpoints, the halt, early stopping."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import TrainerCallback

from fitune.errors import RunError, TrainingHalted
from fitune.ops.label_loss import count_trained, label_loss
from fitune.runs import checkpoints
from fitune.trainers.sampler import epoch_order


class StopAt(TrainerCallback):
    """Ends training after a step."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step


def gradients_of_first_step(trainer):
    """Gradients as they stand before the first optimizer step."""
    kept = {}
    step = trainer.callback_handler.on_pre_optimizer_step

    def spy(*args, **kwargs):
        if not kept:
            kept.update({name: value.grad.clone() for name, value in trainer.trained_parameters()})
        return step(*args, **kwargs)

    trainer.callback_handler.on_pre_optimizer_step = spy
    trainer.train()
    return kept


@pytest.mark.parametrize("micro", [1, 2])
def test_micro_batches_equal_the_whole_batch(tmp_path, tiny, micro):
    """k micro-batches of b rows give the loss and the gradients of one of k·b, rows of different length.

    10 rows in batches of 4: the last step of each epoch has fewer rows, and fewer micro-batches.
    """
    rows = tiny.make_rows(10)
    found = {}
    for size in (4, micro):
        trainer = tiny.trainer(
            tmp_path / str(size), tiny.llama(), rows, micro_batch_size=size, epochs=2, max_grad_norm=None
        )
        found[size] = gradients_of_first_step(trainer), tiny.losses(trainer)
    whole, parts = found[4], found[micro]
    for name, gradient in whole[0].items():
        assert torch.allclose(gradient, parts[0][name], rtol=1e-5, atol=1e-7), name
    assert len(whole[1]) == 6
    assert whole[1] == pytest.approx(parts[1], rel=1e-5)


def test_the_step_loss_is_the_mean_over_its_tokens(tmp_path, tiny):
    rows = tiny.make_rows(4)
    batch = tiny.collate([rows[index] for index in epoch_order(4, seed=1, epoch=0)])
    with torch.no_grad():
        expected = label_loss(tiny.llama(), batch, count_trained(batch["labels"])).item()
    trainer = tiny.trainer(tmp_path, tiny.llama(), rows, micro_batch_size=1, max_steps=1)
    trainer.train()
    assert tiny.losses(trainer) == pytest.approx([expected], rel=1e-6)


def test_each_epoch_sees_every_row_once_in_its_own_order(tmp_path, tiny):
    rows, seen = tiny.make_rows(10), []
    trainer = tiny.trainer(tmp_path, tiny.llama(), rows, batch_size=4, micro_batch_size=2, epochs=2)
    step = trainer.training_step
    trainer.training_step = lambda *args, **kwargs: (step(*args, **kwargs), seen.extend(trainer.last_row_numbers))[0]
    trainer.train()
    assert seen == epoch_order(10, seed=1, epoch=0) + epoch_order(10, seed=1, epoch=1)
    assert sorted(seen[:10]) == list(range(10)) and seen[:10] != seen[10:]


def test_evaluation_weighs_every_token_alike(tmp_path, tiny):
    """The mean over all tokens, not the mean of the batches' means."""
    eval_rows = [*tiny.make_rows(3, seed=5, longest=4), *tiny.make_rows(2, seed=6, longest=30)]
    model = tiny.llama()
    batch = tiny.collate(eval_rows)
    with torch.no_grad():
        expected = label_loss(model.eval(), batch, count_trained(batch["labels"])).item()
    trainer = tiny.trainer(tmp_path, model, tiny.make_rows(4), eval_rows, batch_size=2)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)


def test_evaluating_more_often_does_not_change_the_training(tmp_path, tiny):
    """With dropout, whose random numbers an evaluation would otherwise use up."""
    rows, found = tiny.make_rows(12), []
    for every in (1, 6):
        model = tiny.llama(dropout=0.3)
        trainer = tiny.trainer(tmp_path / str(every), model, rows, rows[:2], max_steps=6, every_steps=every)
        trainer.train()
        found.append(tiny.losses(trainer))
    assert found[0] == found[1]


def test_bf16_means_autocast_over_a_frozen_bf16_base_with_fp32_adapters(tmp_path, tiny):
    model, seen = tiny.llama(torch.bfloat16), set()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    layer = model.base_model.model.model.layers[0].mlp.up_proj.lora_A["default"]
    layer.register_forward_hook(lambda module, args, output: seen.add((module.weight.dtype, output.dtype)))
    trainer = tiny.trainer(tmp_path, model, tiny.make_rows(4), mixed_precision="bf16", max_steps=1)
    trainer.train()
    assert seen == {(torch.float32, torch.bfloat16)}  # fp32 weight, product in bf16
    assert all(value.grad is None or value.grad.dtype == torch.float32 for _, value in trainer.trained_parameters())
    assert model.base_model.model.lm_head.weight.dtype == torch.bfloat16


def test_a_loss_that_is_not_finite_halts_and_names_the_place(tmp_path, tiny):
    rows = tiny.make_rows(8)
    trainer = tiny.trainer(tmp_path, tiny.llama(), rows, epochs=3, checkpoint_steps=1)
    poisoned = {rows[index].row_number for index in epoch_order(8, seed=1, epoch=0)[4:]}
    step = trainer.compute_loss

    def poison(model, inputs, *args, **kwargs):
        loss = step(model, inputs, *args, **kwargs)
        return loss * math.nan if set(inputs["row_numbers"].tolist()) == poisoned else loss

    trainer.compute_loss = poison
    with pytest.raises(TrainingHalted) as caught:
        trainer.train()
    words = str(caught.value)
    assert "halted at step 2: the loss is nan" in words and "fp32" in words and "learning rate" in words
    assert all(str(number) in words.split("rows ")[1] for number in poisoned)
    assert "checkpoint-1" in words and "lower train.learning_rate" in words
    assert checkpoints.newest_complete(tmp_path).name == "checkpoint-1"


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, tiny.llama(), tiny.make_rows(8), checkpoint_steps=1)
    optimizer_step = trainer.callback_handler.on_optimizer_step

    def break_weights(*args, **kwargs):
        with torch.no_grad():
            trainer.trained_parameters()[0][1][0] = math.inf
        return optimizer_step(*args, **kwargs)

    trainer.callback_handler.on_optimizer_step = break_weights
    with pytest.raises(TrainingHalted, match=r"1 trained parameters are not finite.*there is no checkpoint yet"):
        trainer.train()
    assert checkpoints.newest_complete(tmp_path) is None


def test_a_full_disk_is_said_and_leaves_earlier_checkpoints(tmp_path, tiny, monkeypatch):
    trainer = tiny.trainer(tmp_path, tiny.llama(), tiny.make_rows(8), checkpoint_steps=1)
    mark = checkpoints.mark_complete

    def full(folder):
        if folder.name == "checkpoint-2":
            raise OSError(28, "No space left on device")
        mark(folder)

    monkeypatch.setattr(checkpoints, "mark_complete", full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert checkpoints.newest_complete(tmp_path).name == "checkpoint-1"
    assert not (tmp_path / "checkpoint-2").exists()  # a full disk needs the room


def test_the_best_checkpoint_is_kept_and_patience_ends_the_run(tmp_path, tiny):
    scores = iter([0.2, 0.9, 0.8, 0.7, 0.6, 0.5])
    rows = tiny.make_rows(8)
    trainer = tiny.trainer(
        tmp_path, tiny.llama(), rows, rows[:2], max_steps=6, every_steps=1, patience=3, best_metric="exact_match",
        examine=lambda model, step: {"exact_match": next(scores)},
    )  # fmt: skip
    trainer.train()
    assert trainer.state.global_step == 5  # best at 2, then three without gain
    assert trainer.state.best_global_step == 2
    assert [checkpoints.step_of(folder) for folder in checkpoints.complete_checkpoints(tmp_path)] == [2, 5]


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path, tiny):
    trainer = tiny.trainer(tmp_path, tiny.llama(), tiny.make_rows(4), checkpoint_steps=1)
    trainer.train()
    other = tiny.trainer(tmp_path, tiny.llama(lora=False), tiny.make_rows(4))
    with pytest.raises(RunError, match="does not contain this model's trained parameters"):
        other.load_trained(tmp_path / "checkpoint-1")


@pytest.mark.parametrize("stop_at", [1, 3, 4])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, tiny, stop_at):
    """Dropout, accumulation, momentum, schedule, an epoch's end (step 3) and a log window of two steps."""
    rows, options = tiny.make_rows(10), {"micro_batch_size": 2, "epochs": 3, "log_steps": 2, "checkpoint_steps": 1}

    def fresh(folder):
        return tiny.trainer(folder, tiny.llama(dropout=0.3), rows, rows[:2], every_steps=2, **options)

    whole = fresh(tmp_path / "whole")
    whole.train()
    first = fresh(tmp_path / "parts")
    first.add_callback(StopAt(stop_at))
    first.train()
    second = fresh(tmp_path / "parts")
    second.train(resume_from_checkpoint=str(tmp_path / "parts" / f"checkpoint-{stop_at}"))
    told = [(row["step"], row["kind"], row["loss"], row.get("grad_norm")) for row in [*first.logged, *second.logged]]
    assert told == [(row["step"], row["kind"], row["loss"], row.get("grad_norm")) for row in whole.logged]
    assert second.logged[-2]["step"] == 9 and second.logged[-2]["tokens"] == whole.logged[-2]["tokens"]
    for (name, value), (_, expected) in zip(second.trained_parameters(), whole.trained_parameters(), strict=True):
        assert torch.equal(value, expected), name
