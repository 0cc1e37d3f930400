"""What the methods share that learn from the rewards of their own answers: their settings section and its rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from fitune.methods.method import ANSWER_METRICS, Fault, Method, OnlineDefaults, RuleInputs
from fitune.section import PositiveInt, Section, Share


class RlSettings(Section):
    """Reinforcement learning (ppo, grpo): rewards, sampling, and the update of the policy."""

    rewards: list[str] = []
    """Rewards, each with an optional weight in front: `[pig_latin, 0.2*length:20]`. A built-in one (exact, words, chrf,
    regex:PATTERN, length:WORDS, json, json:KEY+KEY, pig_latin), a function (`package.module.function` or
    `file.py:function`), or a reward model (`run:RUN`)."""
    reward_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Time limit of a reward for the answers of a step; after it the run stops, and can be resumed."""
    num_generations: PositiveInt | None = None
    """Answers sampled for each of a step's `train.batch_size` prompts; null uses the method's default."""
    max_new_tokens: PositiveInt = 128
    """Maximum length of a sampled answer in tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature; log-probabilities are computed at the same temperature."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling: sample from the most likely tokens up to this total probability; below 1 the policy that samples
    differs from the one that is trained."""
    generation_batch_size: PositiveInt = 64
    """Answers sampled in one batch; smaller batches need less memory."""
    truncated_reward: float | None = 0.0
    """Upper limit of the reward for an answer truncated at `max_new_tokens`; null sets no limit."""
    num_iterations: PositiveInt | None = None
    """Passes over the answers of a step; null uses the method's default."""
    minibatches: PositiveInt = 1
    """Optimizer updates per pass."""
    kl_coef: Annotated[float, Field(ge=0)] | None = None
    """Weight of the KL penalty against the reference; null uses the method's default."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """ppo: adapt `kl_coef` towards this KL per answer (Ziegler et al. 2019, arXiv 1909.08593); null keeps it fixed."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """Clip range ε of the probability ratio (PPO, arXiv 1707.06347)."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """Upper clip range (DAPO's clip-higher, arXiv 2503.14476, uses 0.28); null uses `clip`."""
    ratio: Literal["token", "answer"] = "token"
    """Clip each token's ratio, or the ratio of the whole answer (GSPO, arXiv 2507.18071)."""
    loss_aggregation: Literal["token", "answer", "constant"] = "token"
    """How token losses become one loss. token: mean over all tokens (DAPO). answer: mean over each answer, then over the
    answers (GRPO, arXiv 2402.03300). constant: sum divided by answers × `max_new_tokens` (Dr. GRPO, arXiv 2503.20783)."""
    advantage: Literal["group", "rloo"] = "group"
    """grpo: group: reward minus the mean of the group. rloo: reward minus the mean of the other answers, with the KL
    penalty in the reward (RLOO, arXiv 2402.14740)."""
    scale_rewards: bool = True
    """grpo: divide the advantages by the standard deviation of the group's rewards; Dr. GRPO does not."""
    gamma: Share = 1.0
    """ppo: discount factor γ."""
    gae_lambda: Share = 0.95
    """ppo: λ of generalized advantage estimation (arXiv 1506.02438)."""
    value_coef: Annotated[float, Field(ge=0)] = 0.1
    """ppo: weight of the value loss."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """ppo: clip range of the values within a step; null disables clipping."""
    keep_samples: Annotated[int, Field(ge=0)] = 4
    """Answers of each step to keep in the run folder, half of them the best and half the worst."""


def rl_rules(rl: RlSettings, inputs: RuleInputs) -> Iterator[Fault]:
    """Faults of the section that every method makes which reads it."""
    if not rl.rewards:
        yield (
            ("rl.rewards", "method"),
            f"is empty, and method {inputs.method} learns from rewards; name one, such as [pig_latin]",
        )
    if not inputs.eval_samples and inputs.held_out:
        yield (
            ("eval.samples", "method"),
            f"is 0, and method {inputs.method} is evaluated on generated answers only; use 1 or more, or hold out no rows "
            "(data.eval_share 0, data.eval null)",
        )
    if rl.minibatches > inputs.batch_size:
        yield (
            ("rl.minibatches", "train.batch_size"),
            f"is {rl.minibatches}, and a step has train.batch_size {inputs.batch_size} prompts; use that or fewer",
        )


def online_method(
    *,
    name: str,
    help: str,
    trainer: str,
    unread: tuple[str, ...],
    sampling: OnlineDefaults,
    rules: Callable[[RlSettings, RuleInputs], Iterator[Fault]],
) -> Method:
    """The facts of a method that learns from the rewards of its own answers; arguments as in `Method`."""
    return Method(
        name=name,
        help=help,
        trainer=trainer,
        unread=unread,
        sampling=sampling,
        rules=rules,
        reads="prompts",
        learning_rates={"lora": 1e-4},
        traced_loss="pairs",
        metrics=("reward", *ANSWER_METRICS),
        section="rl",
        settings=RlSettings,
        why_lora="uses the base with the adapter switched off as its reference",
        reference_by_switch=True,
        forbids_dropout=True,
        reads_loss_on=False,
    )
