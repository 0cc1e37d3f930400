"""Formulas of learning from rewards against slow, plain Python written from the papers, number by number."""

from __future__ import annotations

import math
import random
import statistics

import pytest
import torch

from fitune.trainers.rl.losses import (
    adapted_coefficient,
    explained_variance,
    gae,
    group_advantages,
    kl_estimate,
    penalised_rewards,
    policy_loss,
    rloo_advantages,
    token_weights,
    value_loss,
    whiten,
)

LENGTHS = (5, 1, 3, 7)


def batch(seed: int = 0) -> tuple[list[list[float]], torch.Tensor]:
    """Ragged lists of random numbers, and the mask of their lengths."""
    generator = random.Random(seed)
    rows = [[generator.gauss(0, 1) for _ in range(length)] for length in LENGTHS]
    mask_BT = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return rows, mask_BT


def padded(rows: list[list[float]], filling: float = 99.0) -> torch.Tensor:
    """BT; what lies past an answer's end is wrong on purpose."""
    longest = max(map(len, rows))
    return torch.tensor([row + [filling] * (longest - len(row)) for row in rows], dtype=torch.float32)


def same(found_BT: torch.Tensor, wanted: list[list[float]]) -> None:
    torch.testing.assert_close(found_BT, padded(wanted, 0.0), rtol=1e-5, atol=1e-5)


def test_gae_equals_the_sum_of_discounted_errors() -> None:
    rewards, mask_BT = batch(1)
    values, _ = batch(2)
    gamma, lam = 0.97, 0.9
    wanted = []
    for row, value in zip(rewards, values, strict=True):
        length = len(row)
        after = [*value[1:], 0.0]
        deltas = [row[t] + gamma * after[t] - value[t] for t in range(length)]
        wanted.append([sum((gamma * lam) ** k * deltas[t + k] for k in range(length - t)) for t in range(length)])
    same(gae(padded(rewards), padded(values), mask_BT, gamma, lam), wanted)


def test_advantage_plus_value_is_the_return_when_lambda_is_one() -> None:
    rewards, mask_BT = batch(3)
    values, _ = batch(4)
    advantages_BT = gae(padded(rewards), padded(values), mask_BT, 0.9, 1.0)
    returns = [[sum(0.9**k * later for k, later in enumerate(row[t:])) for t in range(len(row))] for row in rewards]
    same((advantages_BT + padded(values)) * mask_BT, returns)


def test_penalised_rewards_put_the_score_on_the_last_token() -> None:
    logp, mask_BT = batch(5)
    ref, _ = batch(6)
    scores = [1.0, -2.0, 0.5, 3.0]
    wanted = []
    for score, mine, theirs in zip(scores, logp, ref, strict=True):
        row = [-0.3 * (a - b) for a, b in zip(mine, theirs, strict=True)]
        row[-1] += score
        wanted.append(row)
    same(penalised_rewards(torch.tensor(scores), padded(logp), padded(ref), mask_BT, 0.3), wanted)


def test_an_empty_answer_has_no_token_to_reward() -> None:
    mask_BT = torch.tensor([[False, False], [True, False]])
    rewards_BT = penalised_rewards(torch.tensor([5.0, 1.0]), torch.zeros(2, 2), torch.zeros(2, 2), mask_BT, 0.1)
    assert rewards_BT.tolist() == [[0.0, 0.0], [1.0, 0.0]]


def test_kl_estimates_average_to_the_divergence_of_two_distributions() -> None:
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.5, 0.3])
    exact = float((policy * (policy / reference).log()).sum())
    for kind in ("k1", "k3"):
        estimates = kl_estimate(policy.log(), reference.log(), kind)
        assert float((policy * estimates).sum()) == pytest.approx(exact, rel=1e-5)
    assert (kl_estimate(policy.log(), reference.log(), "k3") >= 0).all()
    with pytest.raises(ValueError, match="k1 or k3"):
        kl_estimate(policy, reference, "k9")


def test_the_coefficient_rises_above_the_target_and_falls_below_by_two_percent_at_most() -> None:
    assert adapted_coefficient(0.1, 12.0, 6.0) == pytest.approx(0.1 * 1.02)
    assert adapted_coefficient(0.1, 6.6, 6.0) == pytest.approx(0.1 * 1.01)
    assert adapted_coefficient(0.1, 0.0, 6.0) == pytest.approx(0.1 * 0.98)


def test_whitened_numbers_have_mean_zero_and_variance_one_over_the_real_tokens() -> None:
    rows, mask_BT = batch(7)
    flat = [value for row in rows for value in row]
    mean, deviation = statistics.fmean(flat), statistics.pstdev(flat)
    same(whiten(padded(rows), mask_BT), [[(value - mean) / deviation for value in row] for row in rows])
    kept = [[(value - mean) / deviation + mean for value in row] for row in rows]
    same(whiten(padded(rows), mask_BT, shift_mean=False), kept)


def test_group_and_leave_one_out_advantages() -> None:
    scores = [0.1, 0.9, 0.4, 1.0, 1.0, 1.0]
    wanted, plain, left_out = [], [], []
    for start in (0, 3):
        group = scores[start : start + 3]
        for index, score in enumerate(group):
            others = group[:index] + group[index + 1 :]
            wanted.append((score - statistics.fmean(group)) / (statistics.stdev(group) + 1e-4))
            plain.append(score - statistics.fmean(group))
            left_out.append(score - statistics.fmean(others))
    torch.testing.assert_close(group_advantages(torch.tensor(scores), 3), torch.tensor(wanted))
    torch.testing.assert_close(group_advantages(torch.tensor(scores), 3, scale=False), torch.tensor(plain))
    torch.testing.assert_close(rloo_advantages(torch.tensor(scores), 3), torch.tensor(left_out))
    assert group_advantages(torch.tensor(scores), 3)[3:].tolist() == [0.0, 0.0, 0.0]  # no answer was better
    with pytest.raises(ValueError, match="two answers"):
        rloo_advantages(torch.tensor(scores), 1)


@pytest.mark.parametrize("ratio", ["token", "answer"])
def test_clipped_policy_loss(ratio: str) -> None:
    logp, mask_BT = batch(8)
    old, _ = batch(9)
    advantages, _ = batch(10)
    wanted, clipped = [], []
    for mine, theirs, gain in zip(logp, old, advantages, strict=True):
        logs = [a - b for a, b in zip(mine, theirs, strict=True)]
        if ratio == "answer":
            logs = [statistics.fmean(logs)] * len(logs)
        ratios = [math.exp(log) for log in logs]
        bounded = [min(max(value, 1 - 0.2), 1 + 0.3) for value in ratios]
        terms = [(w * a, b * a) for w, b, a in zip(ratios, bounded, gain, strict=True)]
        wanted.append([-min(pair) for pair in terms])
        clipped.append([bound < plain for plain, bound in terms])
    losses_BT, clipped_BT = policy_loss(padded(logp), padded(old), padded(advantages), mask_BT, 0.2, 0.3, ratio)
    same(losses_BT, wanted)
    assert [row[:length] for row, length in zip(clipped_BT.tolist(), LENGTHS, strict=True)] == clipped
    assert not clipped_BT[~mask_BT].any()


def test_clipped_value_loss() -> None:
    values, mask_BT = batch(11)
    old, _ = batch(12)
    returns, _ = batch(13)

    def one(value: float, before: float, target: float) -> float:
        near = min(max(value, before - 0.2), before + 0.2)
        return 0.5 * max((value - target) ** 2, (near - target) ** 2)

    wanted = [[one(*three) for three in zip(*rows, strict=True)] for rows in zip(values, old, returns, strict=True)]
    same(value_loss(padded(values), padded(old), padded(returns), mask_BT, 0.2), wanted)
    plain = [
        [0.5 * (a - c) ** 2 for a, c in zip(mine, target, strict=True)]
        for mine, target in zip(values, returns, strict=True)
    ]
    same(value_loss(padded(values), padded(old), padded(returns), mask_BT, None), plain)


def test_token_weights_of_the_three_ways_to_sum() -> None:
    losses, mask_BT = batch(14)
    flat = [value for row in losses for value in row]
    totals = {
        "answer": statistics.fmean(statistics.fmean(row) for row in losses),
        "token": statistics.fmean(flat),
        "constant": sum(flat) / (len(losses) * 10),
    }
    for over, wanted in totals.items():
        found = (padded(losses) * token_weights(mask_BT, over, 10)).sum()
        assert float(found) == pytest.approx(wanted, rel=1e-5)
    with pytest.raises(ValueError, match="answer, token or constant"):
        token_weights(mask_BT, "tokens", 10)


def test_explained_variance() -> None:
    rows, mask_BT = batch(15)
    assert float(explained_variance(padded(rows), padded(rows), mask_BT)) == pytest.approx(1.0)
    assert float(explained_variance(torch.zeros(mask_BT.shape), padded(rows), mask_BT)) == pytest.approx(0.0, abs=1e-5)
