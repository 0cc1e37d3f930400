"""The mathematics of learning from rewards, each formula a pure function of tensors, with its source.

In: numbers of sampled answers. Out: numbers. Knows nothing of models, sampling or trainers.

B answers, T tokens of the longest answer, G answers to one prompt. Tensors BT are fp32; ``mask_BT`` is True where an
answer has a token, and everything past an answer's end is ignored and comes out as 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-8


# ---- distance from the reference


def kl_estimate(logp_BT: Tensor, ref_BT: Tensor, kind: str = "k1") -> Tensor:
    """Per-token estimate of KL(policy ‖ reference) from sampled tokens.

    k1 = log π/ρ is unbiased, k3 = ρ/π − 1 − log ρ/π unbiased, never negative and of lower variance (Schulman 2020,
    "Approximating KL Divergence"; k3 is the penalty of GRPO, arXiv 2402.03300, equation 4).
    """
    difference = logp_BT - ref_BT
    if kind == "k1":
        return difference
    if kind == "k3":
        return torch.expm1(-difference) + difference
    raise ValueError(f'kind is "{kind}"; use k1 or k3')


def penalised_rewards(scores_B: Tensor, logp_BT: Tensor, ref_BT: Tensor, mask_BT: Tensor, kl_coef: float) -> Tensor:
    """Rewards BT: −kl_coef·log π/ρ at every token, and the answer's score at its last one.

    Ziegler et al. 2019 (arXiv 1909.08593, section 2, R = r − β·log π/ρ), laid out per token as in InstructGPT (arXiv
    2203.02155, section 3.5).
    """
    rewards_BT = -kl_coef * kl_estimate(logp_BT, ref_BT) * mask_BT
    last_B = mask_BT.sum(1) - 1
    return rewards_BT.scatter_add(1, last_B.clamp(min=0)[:, None], (scores_B * (last_B >= 0))[:, None])


def adapted_coefficient(kl_coef: float, kl: float, target: float, gain: float = 0.1) -> float:
    """The next KL coefficient, which steers the KL of an answer (summed over its tokens) towards ``target``.

    e = clip(KL/target − 1, −0.2, 0.2), β ← β·(1 + gain·e): Ziegler et al. 2019, section 2.2, equation 5 and after.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + gain * error)


# ---- how much better than expected


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Advantages BT: Σ (γλ)^k δ_{t+k} with δ_t = r_t + γ·V_{t+1} − V_t, and V = 0 after an answer's end.

    Schulman et al. 2016 (arXiv 1506.02438), equation 16.
    """
    rewards_BT, values_BT = rewards_BT * mask_BT, values_BT * mask_BT
    advantages_BT = torch.zeros_like(rewards_BT)
    later_B = next_value_B = torch.zeros_like(rewards_BT[:, 0])
    for t in range(rewards_BT.shape[1] - 1, -1, -1):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        later_B = delta_B + gamma * gae_lambda * later_B
        advantages_BT[:, t] = later_B
        next_value_B = values_BT[:, t]
    return advantages_BT * mask_BT


def whiten(values_BT: Tensor, mask_BT: Tensor, shift_mean: bool = True) -> Tensor:
    """Mean 0 (unless ``shift_mean`` is False: then the mean stays) and variance 1 over all tokens of the batch.

    Common practice since OpenAI's baselines; Huang et al. 2024 (arXiv 2403.17031), details 16 and 21.
    """
    mean, variance = masked_mean(values_BT, mask_BT), masked_variance(values_BT, mask_BT)
    white_BT = (values_BT - mean) * torch.rsqrt(variance + TINY)
    return (white_BT if shift_mean else white_BT + mean) * mask_BT


def group_advantages(scores_B: Tensor, group: int, scale: bool = True) -> Tensor:
    """Advantages B against the other answers to the same prompt, which are neighbours: (r − mean) / std.

    DeepSeekMath (arXiv 2402.03300), section 4.1.2. Without ``scale`` there is no division, which would give prompts
    whose answers are almost all alike the largest steps: Dr. GRPO (arXiv 2503.20783), section 3.
    """
    scores_PG = scores_B.view(-1, group)
    centred_PG = scores_PG - scores_PG.mean(1, keepdim=True)
    if scale and group > 1:
        centred_PG = centred_PG / (scores_PG.std(1, keepdim=True) + 1e-4)
    return centred_PG.reshape(-1)


def rloo_advantages(scores_B: Tensor, group: int) -> Tensor:
    """Advantages B: an answer's score less the mean of the other answers to the same prompt.

    REINFORCE leave-one-out: Ahmadian et al. 2024 (arXiv 2402.14740), section 3.3. Equals G/(G−1) times the unscaled
    group advantage.
    """
    if group < 2:
        raise ValueError(f"leave-one-out needs two answers to a prompt or more, and there is {group}")
    scores_PG = scores_B.view(-1, group)
    others_PG = (scores_PG.sum(1, keepdim=True) - scores_PG) / (group - 1)
    return (scores_PG - others_PG).reshape(-1)


# ---- losses, per token


def policy_loss(
    logp_BT: Tensor, old_BT: Tensor, advantages_BT: Tensor, mask_BT: Tensor,
    clip_low: float, clip_high: float, ratio: str = "token",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Clipped surrogate loss BT, and where the clip was in force (bool BT).

    −min(w·A, clip(w, 1 − clip_low, 1 + clip_high)·A) with w = π/π_old: PPO (arXiv 1707.06347), equation 7; a wider
    upper side lets unlikely tokens grow: DAPO (arXiv 2503.14476), section 3.1. ``ratio: answer`` takes one w for the
    whole answer, the geometric mean of its tokens': GSPO (arXiv 2507.18071), equation 7.
    """
    log_ratio_BT = (logp_BT - old_BT) * mask_BT
    if ratio == "answer":
        log_ratio_BT = (log_ratio_BT.sum(1, keepdim=True) / mask_BT.sum(1, keepdim=True).clamp(min=1)) * mask_BT
    elif ratio != "token":
        raise ValueError(f'ratio is "{ratio}"; use token or answer')
    ratio_BT = log_ratio_BT.exp()
    plain_BT = -advantages_BT * ratio_BT
    clipped_BT = -advantages_BT * ratio_BT.clamp(1 - clip_low, 1 + clip_high)
    return torch.maximum(plain_BT, clipped_BT) * mask_BT, (clipped_BT > plain_BT) & mask_BT


def value_loss(values_BT: Tensor, old_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor, clip: float | None) -> Tensor:
    """½·max((V − R)², (V clipped to V_old ± clip − R)²) BT, without a clip ½·(V − R)².

    As in OpenAI's baselines (ppo2); Huang et al. 2024 (arXiv 2403.17031), detail 19.
    """
    losses_BT = (values_BT - returns_BT).square()
    if clip is not None:
        near_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
        losses_BT = torch.maximum(losses_BT, (near_BT - returns_BT).square())
    return 0.5 * losses_BT * mask_BT


def token_weights(mask_BT: Tensor, aggregation: str, max_tokens: int) -> Tensor:
    """Weights BT by which per-token losses are summed to one loss; made for a whole update, however it is dealt out.

    answer: each answer's mean, then the mean of answers (GRPO, arXiv 2402.03300, equation 3); token: the mean over
    all tokens, so that long answers count as long (DAPO, arXiv 2503.14476, section 3.3); constant: the sum divided by
    answers × the longest length allowed, so that an answer's length changes no token's weight (Dr. GRPO,
    arXiv 2503.20783, section 3).
    """
    count = max(len(mask_BT), 1)
    if aggregation == "answer":
        weights_BT = mask_BT / mask_BT.sum(1, keepdim=True).clamp(min=1) / count
    elif aggregation == "token":
        weights_BT = mask_BT / mask_BT.sum().clamp(min=1)
    elif aggregation == "constant":
        weights_BT = mask_BT / (count * max_tokens)
    else:
        raise ValueError(f'aggregation is "{aggregation}"; use answer, token or constant')
    return weights_BT.float()


# ---- what is watched


def masked_mean(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean over the tokens of all answers."""
    return (values_BT * mask_BT).sum() / mask_BT.sum().clamp(min=1)


def masked_variance(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Variance over the tokens of all answers, divided by their number."""
    return masked_mean((values_BT - masked_mean(values_BT, mask_BT)).square(), mask_BT)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 − Var(R − V) / Var(R): 1 when the values foretell the returns, 0 when they tell no more than their mean."""
    return 1 - masked_variance(returns_BT - values_BT, mask_BT) / (masked_variance(returns_BT, mask_BT) + TINY)
