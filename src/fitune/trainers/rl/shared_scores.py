"""Rewards of a step's answers, each rank scoring the answers to its own prompts; an answer's group stays whole.

In: a mix of rewards, all answers. Out: all scores on every rank, in order.
"""

from __future__ import annotations

from collections.abc import Sequence

from fitune.distributed import ranks, together
from fitune.errors import RewardError
from fitune.rewards.mix import Mix, Sample

Scores = tuple[list[float], dict[str, list[float]]]


def score_shared(mix: Mix, samples: Sequence[Sample], per_prompt: int) -> Scores:
    """`Mix.score` of all ``samples``.

    Raises:
        RewardError: a reward failed on one of the ranks.
    """
    if ranks.size() == 1:
        return mix.score(samples)
    prompts = ranks.share(len(samples) // per_prompt)
    fault, scores = None, None
    try:
        scores = mix.score(samples[prompts.start * per_prompt : prompts.stop * per_prompt])
    except RewardError as error:
        fault = str(error)
    every = together.gather((fault, scores), "answers are rewarded")
    if fault := next((said for said, _ in every if said is not None), None):
        raise RewardError(fault)
    parts = [part for _, part in every if part is not None]
    own = {name: [value for _, values in parts for value in values[name]] for name in parts[0][1]}
    return [score for part, _ in parts for score in part], own
