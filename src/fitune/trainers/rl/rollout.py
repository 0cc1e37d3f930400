"""Answers sampled from the model that is trained, many at once.

In: prompts, how to sample. Out: `RolloutBatch`: token rows ready for the training step, and samples ready for rewards.
Knows nothing of rewards' values, losses or trainers.

B answers: those to one prompt are neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import nn
from transformers import LogitsProcessorList

from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import PromptRow, TokenRow
from fitune.distributed import ranks, together
from fitune.evaluation.generation import (
    LanguageModel,
    Sampling,
    asking,
    can_cache,
    generation_settings,
    left_padded,
    read_answer,
)
from fitune.models.base_model import base_model_of
from fitune.models.hardware import gpus_in_use
from fitune.rewards.mix import Sample
from fitune.trainers.oom_recovery import OomRecovery, RandomState, put_back, random_state
from fitune.trainers.rl.draws import DrawsOfWholeBatch


@dataclass(frozen=True)
class RolloutBatch:
    """The answers of one step."""

    rows: tuple[TokenRow, ...]
    """B rows of prompt and answer, the answer trained, its end token included; numbered 0 … B − 1."""
    samples: tuple[Sample, ...]
    """B answers as text, for the rewards."""
    prompts: int
    """Different prompts; each has B / prompts answers."""

    @property
    def per_prompt(self) -> int:
        return len(self.rows) // self.prompts

    @property
    def lengths(self) -> list[int]:
        """B numbers of answer tokens."""
        return [row.num_trained for row in self.rows]

    @property
    def stopped_share(self) -> float:
        """Share of the answers that ended by themselves."""
        return sum(sample.stopped for sample in self.samples) / len(self.samples)


def sample_answers(
    model: nn.Module,
    renderer: Renderer,
    prompts: Sequence[PromptRow],
    per_prompt: int,
    sampling: Sampling,
    generation_batch_size: int,
    seed: int,
    recovery: OomRecovery,
) -> RolloutBatch:
    """`per_prompt` answers to each prompt.

    The draws depend on the seed and on `generation_batch_size` alone, and nobody else's random numbers are used up: a resumed
    run samples what the uninterrupted one would have sampled, and a batch that memory asks to be cut what the whole
    batch would have been answered.

    Args:
        generation_batch_size: answers in one batch, which share their draws.
        recovery: limits how many of a batch are sampled at once, whose caches live at the same time.
    """
    order = sorted(
        (index for index in range(len(prompts)) for _ in range(per_prompt)), key=lambda at: _size(prompts[at])
    )
    answers: dict[int, list[list[int]]] = {index: [] for index in range(len(prompts))}
    with torch.random.fork_rng(devices=gpus_in_use()), asking(cast("LanguageModel", model)):
        torch.manual_seed(seed)
        for first in range(0, len(order), generation_batch_size):
            chosen = order[first : first + generation_batch_size]
            asked = [list(prompts[index].input_ids) for index in chosen]
            found = _answer_on_ranks(partial(_answer_batch, model, renderer, sampling, recovery), asked, recovery)
            for index, ids in zip(chosen, found, strict=True):
                answers[index].append(through_end(ids, renderer.stop_ids))
    pairs = [(prompts[index], ids) for index in range(len(prompts)) for ids in answers[index]]
    rows = tuple(_row(prompt, ids, number) for number, (prompt, ids) in enumerate(pairs))
    samples = tuple(_sample(prompt, ids, renderer) for prompt, ids in pairs)
    return RolloutBatch(rows, samples, len(prompts))


@dataclass(frozen=True)
class _Answered:
    """New tokens for each prompt, the length of the longest, and where the random numbers stand behind it."""

    found: list[list[int]]
    longest: int
    end: RandomState


def _answer_on_ranks(
    answer: Callable[[slice, Sequence[list[int]]], _Answered], asked: Sequence[list[int]], recovery: OomRecovery
) -> list[list[int]]:
    """New tokens for each prompt of a batch, each rank answering its share; afterwards the random numbers stand on all of
    them behind the longest answer."""
    doing, own = "answers are sampled", ranks.share(len(asked))
    mine = together.everywhere(doing, lambda: recovery.run(partial(answer, own), asked))
    every = together.gather(mine, doing)
    put_back(max(every, key=lambda one: one.longest).end)
    return [ids for one in every for ids in one.found]


def _answer_batch(
    model: nn.Module,
    renderer: Renderer,
    sampling: Sampling,
    recovery: OomRecovery,
    own: slice,
    asked: Sequence[list[int]],
) -> _Answered:
    """New tokens for the prompts ``own`` of a batch; sampled in parts, each part draws what it would have drawn in the
    whole."""
    generate, device = cast("Callable[..., torch.Tensor]", model.generate), base_model_of(model).device
    start = random_state()
    longest, end = 0, start
    found: list[list[int]] = []
    for here in recovery.slices(own.stop - own.start):
        rows = slice(own.start + here.start, own.start + here.stop)
        put_back(start)
        part = asked[rows]
        input_ids, mask = left_padded(part, renderer.tokenizer.pad_token_id)
        cached = can_cache(cast("LanguageModel", model))
        settings, draws = generation_settings(renderer, sampling, cached), LogitsProcessorList()
        if len(part) < len(asked) and sampling.temperature > 0:
            settings = generation_settings(renderer, Sampling(sampling.max_new_tokens), cached)
            draws.append(DrawsOfWholeBatch(sampling, rows, len(asked)))
        output = generate(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            generation_config=settings,
            logits_processor=draws,
        )
        new = output[:, input_ids.shape[1] :]
        found += new.tolist()
        if new.shape[1] > longest:
            longest, end = new.shape[1], random_state()
    return _Answered(found, longest, end)


def through_end(ids: Sequence[int], end_ids: Sequence[int]) -> list[int]:
    """New tokens through the first that ends the answer; `generate` pads what follows it."""
    ends = set(end_ids)
    stop = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
    return list(ids[:stop])


def step_seed(seed: int, step: int, what: int = 0) -> int:
    """A seed of its own for each step of each run, and for each use within a step."""
    return (seed * 1_000_003 + step * 7_919 + what * 104_729 + 54_321) % 2**63


def _size(prompt: PromptRow) -> int:
    return len(prompt.input_ids)


def _row(prompt: PromptRow, ids: Sequence[int], number: int) -> TokenRow:
    return TokenRow((*prompt.input_ids, *ids), (False,) * len(prompt.input_ids) + (True,) * len(ids), number)


def _sample(prompt: PromptRow, ids: Sequence[int], renderer: Renderer) -> Sample:
    asked = [message["content"] for message in prompt.messages if message["role"] == "user"]
    said = read_answer(ids, prompt.input_ids, renderer)
    return Sample(
        answer=said.text,
        reasoning=said.reasoning,
        question=asked[-1] if asked else "",
        prompt=renderer.tokenizer.decode(prompt.input_ids),
        messages=prompt.messages,
        wanted=prompt.reference,
        stopped=said.stopped,
        tokens=len(ids),
        token_ids=(*prompt.input_ids, *ids),
        row_number=prompt.row_number,
        row=dict(prompt.columns),
    )
