"""The step of methods that learn from rewards: sampling, layout, updates, and what a failing reward leaves behind."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fitune.errors import RewardError, TrainingHalted
from fitune.evaluation.generation import Sampling
from fitune.methods.grpo.trainer import GrpoOptions, GrpoTrainer
from fitune.methods.ppo.trainer import PpoOptions, PpoTrainer
from fitune.rewards.mix import Mix, Part
from fitune.runs.checkpoints import newest_complete
from fitune.trainers.callbacks import RunLog
from fitune.trainers.rl.rollout import step_seed, through_end

LONG = {"sampling": Sampling(6, 1.0), "num_generations": 3}


def mix_of(reward: Any) -> Mix:
    return Mix((Part("r", 1.0, reward, frozenset({"answers"})),))


def by_length(answers: list[str]) -> list[float]:
    return [float(len(answer.split()) + int(answer.split()[0]) % 7) for answer in answers]


def prepared(trainer: Any) -> tuple[Any, torch.Tensor]:
    """A step's answers and scores, as far as `training_step` goes before it learns."""
    answered = trainer.sample(trainer.train_dataset.rows)
    scores_B, _ = trainer.judge(answered)
    trainer.model.train()
    trainer.mask = trainer._mask(answered)
    return answered, scores_B


def gradients(trainer: Any) -> tuple[dict[str, torch.Tensor], float]:
    answered, scores_B = prepared(trainer)
    loss = trainer.learn(answered, scores_B)["loss"]
    return {name: value.grad.clone() for name, value in trainer.trained_parameters()}, float(loss)


def test_an_answer_ends_with_its_first_end_token() -> None:
    assert through_end([5, 6, 2, 0, 2], (2,)) == [5, 6, 2]
    assert through_end([5, 6, 7], (2,)) == [5, 6, 7]
    assert through_end([2, 2, 2], (2,)) == [2]


def test_no_two_steps_or_uses_share_a_seed() -> None:
    seeds = {step_seed(seed, step, use) for seed in range(3) for step in range(50) for use in range(5)}
    assert len(seeds) == 3 * 50 * 5


def test_sampling_depends_on_the_step_alone_and_uses_up_nobodys_random_numbers(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.bandit(tmp_path, GrpoTrainer, GrpoOptions(), **LONG)
    torch.manual_seed(9)
    first = trainer.sample(trainer.train_dataset.rows)
    drawn = torch.rand(1)
    torch.manual_seed(9)
    assert torch.equal(drawn, torch.rand(1))
    assert trainer.sample(trainer.train_dataset.rows).rows == first.rows
    trainer.state.global_step = 1
    assert trainer.sample(trainer.train_dataset.rows).rows != first.rows
    assert first.per_prompt == 3
    assert [row.row_number for row in first.rows] == list(range(12))
    assert [sample.row_number for sample in first.samples] == [number for number in range(4) for _ in range(3)]


def test_log_probabilities_are_those_of_the_plain_model(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.bandit(tmp_path, GrpoTrainer, GrpoOptions(), **LONG)
    answered, _ = prepared(trainer)
    (part,) = trainer.micro_batches(answered)
    found_BT = trainer.forward(part).logp.detach()
    for row, found in zip(answered.rows, found_BT, strict=True):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            inner = trainer.model(ids, use_cache=False).logits[0, :-1].log_softmax(-1)
        wanted = inner.gather(1, ids[0, 1:, None])[-row.num_trained :, 0]
        torch.testing.assert_close(found[: row.num_trained], wanted, rtol=1e-4, atol=1e-4)
        assert not found[row.num_trained :].any()


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
@pytest.mark.parametrize("changed", [{"part_prompts": 1}, {"mode": "off"}, {"mode": "rows"}])
def test_layout_and_micro_batches_change_no_gradient(
    kind: str, changed: dict[str, Any], tiny: Any, tmp_path: Path
) -> None:
    trainer_kind, options = (PpoTrainer, PpoOptions()) if kind == "ppo" else (GrpoTrainer, GrpoOptions())
    how = {**LONG, "num_iterations": 1, "mix": mix_of(by_length)}
    wanted, wanted_loss = gradients(tiny.bandit(tmp_path, trainer_kind, options, **how))
    found, loss = gradients(tiny.bandit(tmp_path, trainer_kind, options, **{**how, **changed}))
    assert loss == pytest.approx(wanted_loss, rel=1e-4, abs=1e-5)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_several_updates_deal_every_answer_out_once_a_pass(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.bandit(tmp_path, GrpoTrainer, GrpoOptions(), num_iterations=2, minibatches=2, part_prompts=1, **LONG)
    answered, _ = prepared(trainer)
    steps = []
    trainer._step_now = lambda: steps.append(1)
    updates = list(trainer.updates(trainer.micro_batches(answered)))
    assert (len(updates), len(steps)) == (4, 3)
    for first in (0, 2):
        numbers = sorted(number for update in updates[first : first + 2] for part in update for number in part.numbers)
        assert numbers == list(range(12))


def test_an_endless_answer_earns_no_more_than_allowed(tiny: Any, tmp_path: Path) -> None:
    trainer = tiny.bandit(tmp_path, GrpoTrainer, GrpoOptions(), truncated_reward=0.25, mix=mix_of(by_length), **LONG)
    answered = trainer.sample(trainer.train_dataset.rows)
    scores_B, watched = trainer.judge(answered)
    for score, sample in zip(scores_B.tolist(), answered.samples, strict=True):
        own = by_length([sample.answer])[0]
        assert score == (own if sample.stopped else min(own, 0.25))
    assert watched["stopped"] == answered.stopped_share < 1
    rewards = [row["reward"] for row in trainer.kept]
    assert rewards == sorted(rewards)
    assert (rewards[0], rewards[-1], len(rewards)) == (float(scores_B.min()), float(scores_B.max()), 4)


def test_all_answers_cut_off_are_warned_of_once_in_a_while(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = tiny.bandit(tmp_path, GrpoTrainer, GrpoOptions())
    warned: list[str] = []
    monkeypatch.setattr("fitune.trainers.online_rl.warn", warned.append)
    endless: Any = SimpleNamespace(stopped_share=0.0)
    for _ in range(11):
        trainer._warn_of_endless(endless)
    assert len(warned) == 2
    assert "every answer was truncated at rl.max_new_tokens 1" in warned[0]


@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(kind: str, tiny: Any, tmp_path: Path) -> None:
    trainer_kind, options = (PpoTrainer, PpoOptions(kl_target=1.0)) if kind == "ppo" else (GrpoTrainer, GrpoOptions())
    how = {**LONG, "num_iterations": 2, "minibatches": 2, "part_prompts": 2, "steps": 4, "checkpoint_steps": 2}
    whole = tiny.bandit(tmp_path / "whole", trainer_kind, options, mix=mix_of(by_length), **how)
    whole.train()
    again = tiny.bandit(tmp_path / "again", trainer_kind, options, mix=mix_of(by_length), **how)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for (name, value), (_, other) in zip(whole.trained_parameters(), again.trained_parameters(), strict=True):
        assert torch.equal(value, other), name
    assert again.extra_state == whole.extra_state
    assert [row for row in whole.kept if row["step"] > 2] == again.kept


def test_a_failing_reward_leaves_the_steps_before_it_to_resume_from(tiny: Any, tmp_path: Path) -> None:
    calls = []

    def fails_at_the_third(answers: list[str]) -> list[float]:
        calls.append(1)
        if len(calls) == 3:
            raise OSError("the judge is away")
        return by_length(answers)

    how = {**LONG, "steps": 4}
    trainer = tiny.bandit(tmp_path / "broken", PpoTrainer, PpoOptions(), mix=mix_of(fails_at_the_third), **how)
    with pytest.raises(RewardError, match=r"step 3: the reward r raised OSError.*the 2 steps before are kept"):
        trainer.train()
    saved = newest_complete(tmp_path / "broken")
    assert saved is not None and saved.name == "checkpoint-2"
    again = tiny.bandit(tmp_path / "broken", PpoTrainer, PpoOptions(), mix=mix_of(by_length), **how)
    again.train(resume_from_checkpoint=str(saved))
    whole = tiny.bandit(tmp_path / "whole", PpoTrainer, PpoOptions(), mix=mix_of(by_length), **how)
    whole.train()
    for (name, value), (_, other) in zip(whole.trained_parameters(), again.trained_parameters(), strict=True):
        assert torch.equal(value, other), name


def test_what_is_logged_of_a_step(tiny: Any, tmp_path: Path) -> None:
    logged: list[dict[str, Any]] = []
    trainer = tiny.bandit(tmp_path, PpoTrainer, PpoOptions(kl_target=6.0), steps=2, mix=mix_of(by_length), **LONG)
    log = RunLog(logged.append, lambda: 0)
    log.bind(trainer)
    trainer.add_callback(log)
    trainer.train()
    names = {
        "reward", "reward_std", "kl", "kl_coef", "entropy", "clip_fraction", "policy_loss", "value_loss",
        "explained_variance", "answer_tokens", "stopped", "groups_alike",
    }  # fmt: skip
    assert names <= logged[0].keys()
    assert logged[0]["kl"] == 0.0  # a fresh adapter is its own reference
    assert logged[1]["kl_coef"] == pytest.approx(0.05 * 0.98)
    assert logged[1]["tokens"] > logged[0]["tokens"] > 12 * 3


def test_a_loss_that_is_not_finite_halts(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = tiny.bandit(tmp_path, GrpoTrainer, GrpoOptions(), mix=mix_of(by_length), **LONG)
    monkeypatch.setattr("fitune.methods.grpo.trainer.group_advantages", lambda scores, *_: scores * float("nan"))
    with pytest.raises(TrainingHalted, match="step 1: the loss is nan"):
        trainer.train()
