"""What the methods share that learn from the rewards of their own answers: their settings section and its rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Literal

from pydantic import Field

from fitune.methods.method import ANSWER_METRICS, Fault, Method, OnlineDefaults, RuleInputs
from fitune.section import PositiveInt, Section, Share


class RlSettings(Section):
    """Learning from rewards (ppo, grpo): what is rewarded, how answers are sampled, how far the policy may move."""

    rewards: list[str] = []
    """What is rewarded, each with its weight before it: `[pig_latin, 0.2*length:20]`. A word of the library (exact, words,
    chrf, regex:PATTERN, length:WORDS, json, json:KEY+KEY, pig_latin), a function (`package.module.function` or
    `file.py:function`), or a reward run (`run:RUN`)."""
    reward_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest that a reward may take for the answers of a step; then the run stops, and can be resumed."""
    num_generations: PositiveInt | None = None
    """Answers sampled to each of a step's `train.batch_size` prompts; null takes the method's own number."""
    max_new_tokens: PositiveInt = 128
    """Longest sampled answer in tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature; log-probabilities are taken at the same one."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that make up this share; below 1 the policy that samples is no longer quite the one
    that is trained."""
    generation_batch_size: PositiveInt = 64
    """Answers sampled in one batch; fewer need less memory."""
    truncated_reward: float | None = 0.0
    """An answer cut off at `max_new_tokens` earns this at most; null scores it like any other."""
    num_iterations: PositiveInt | None = None
    """Passes over the answers of a step; null takes the method's own number."""
    minibatches: PositiveInt = 1
    """Optimizer updates in each pass."""
    kl_coef: Annotated[float, Field(ge=0)] | None = None
    """Price of the distance from the reference; null takes the method's own."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """ppo: adapt `kl_coef` so that an answer's KL comes near this (Ziegler et al. 2019, arXiv 1909.08593); null keeps it."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """How far a token's probability may fall, or rise, in the updates of a step before its gradient stops."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """The same for rising alone (DAPO's clip-higher, arXiv 2503.14476, takes 0.28); null takes `clip`."""
    ratio: Literal["token", "answer"] = "token"
    """Clip each token's ratio, or that of the whole answer (GSPO, arXiv 2507.18071)."""
    loss_aggregation: Literal["token", "answer", "constant"] = "token"
    """Mean over all tokens (DAPO), over each answer first (GRPO, arXiv 2402.03300), or over the longest length allowed
    (Dr. GRPO, arXiv 2503.20783)."""
    advantage: Literal["group", "rloo"] = "group"
    """grpo: an answer against its group's mean, or against the mean of the others with the KL paid out of the reward
    (RLOO, arXiv 2402.14740)."""
    scale_rewards: bool = True
    """grpo: divide by the standard deviation of the group's rewards; Dr. GRPO does not."""
    gamma: Share = 1.0
    """ppo: discount of later tokens."""
    gae_lambda: Share = 0.95
    """ppo: λ of generalized advantage estimation (arXiv 1506.02438)."""
    value_coef: Annotated[float, Field(ge=0)] = 0.1
    """ppo: weight of the value loss."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """ppo: how far a value may move in the updates of a step; null does not clip."""
    keep_samples: Annotated[int, Field(ge=0)] = 4
    """Answers of each step kept in the run folder, half of them the worst and half the best."""


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
            f"is 0, and method {inputs.method} measures nothing on held-out rows but answers; use 1 or more, or "
            "data.eval_share 0 without data.eval",
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
        why_lora="finds its reference by switching the adapter off",
        reference_by_switch=True,
        forbids_dropout=True,
        reads_loss_on=False,
    )
