"""A batch of answers at once, each with its own sampling, limit and end, told token by token. B rows, V tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING, cast

import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from fitune.data.render.renderer import Renderer
from fitune.evaluation.generation import Sampling, asking, can_cache, generate, generation_settings, left_padded

if TYPE_CHECKING:
    from fitune.evaluation.generation import LanguageModel


@dataclass(frozen=True)
class TokenScore:
    """A token that was said, its log probability, and the likeliest ones at its place with theirs."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass
class AnswerRequest:
    """A prompt to answer.

    Attributes:
        prompt: token ids.
        on_token: told each token as it comes; returns whether the answer ends with it (a stop text, say).
        num_logprobs: None for no log probabilities, else how many of the likeliest tokens to tell beside each.
        seed: makes sampling repeatable, whatever else is in the batch.
        cancelled: set by a client that has gone; the answer ends with the next token.
    """

    prompt: list[int]
    sampling: Sampling
    on_token: Callable[[int, TokenScore | None], bool]
    num_logprobs: int | None = None
    seed: int | None = None
    cancelled: Event = field(default_factory=Event)


def answer_batch(model: LanguageModel, renderer: Renderer, requests: Sequence[AnswerRequest]) -> None:
    """Answer every request; each hears of its tokens through `on_token`, the end token included."""
    with asking(model):
        chooser = _TokenChooser(requests, model.device)
        listener = _Listener(requests, renderer, chooser)
        longest = max(request.sampling.max_new_tokens for request in requests)
        settings = generation_settings(renderer, Sampling(longest), can_cache(model))
        ids, mask = left_padded([request.prompt for request in requests], renderer.tokenizer.pad_token_id)
        until, choose = StoppingCriteriaList([listener]), LogitsProcessorList([chooser])
        generate(model, ids.to(model.device), mask.to(model.device), settings, until=until, choose=choose)


class _TokenChooser(LogitsProcessor):
    """Chooses the next token of rows that sample, by leaving it as the only one; notes log probabilities.

    transformers samples all rows of a batch alike, with one generator.
    """

    def __init__(self, requests: Sequence[AnswerRequest], device: torch.device):
        self.requests = requests
        self.generators = [_generator(request.seed, device) for request in requests]
        self.scores: list[TokenScore | None] = [None] * len(requests)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.FloatTensor:
        scores_BV = scores.clone() if any(request.sampling.temperature > 0 for request in self.requests) else scores
        for row, request in enumerate(self.requests):
            chosen = None  # transformers takes the likeliest
            if request.sampling.temperature > 0:
                chosen = self._draw(scores[row], request.sampling, self.generators[row])
                scores_BV[row] = -torch.inf
                scores_BV[row, chosen] = 0.0
            if request.num_logprobs is not None:
                said = int(scores[row].argmax()) if chosen is None else chosen
                self.scores[row] = score_of(scores[row], said, request.num_logprobs)
        return cast(torch.FloatTensor, scores_BV)

    @staticmethod
    def _draw(scores_V: torch.Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
        probabilities = torch.softmax(scores_V.float() / sampling.temperature, dim=-1)
        if sampling.top_p < 1:
            ordered, places = probabilities.sort(descending=True)
            # The tokens whose likelier ones do not reach top_p yet, so that one is always left.
            kept = places[ordered.cumsum(0) - ordered < sampling.top_p]
            probabilities = torch.zeros_like(probabilities).index_copy_(0, kept, probabilities[kept])
        return int(torch.multinomial(probabilities, 1, generator=generator))


class _Listener(StoppingCriteria):
    """Tells each request its newest token, and ends rows: end token, limit, stop text, or a client that has gone."""

    def __init__(self, requests: Sequence[AnswerRequest], renderer: Renderer, chooser: _TokenChooser):
        self.requests, self.chooser = requests, chooser
        self.stops = set(renderer.stop_ids)
        self.told = 0
        self.ended = [False] * len(requests)

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.BoolTensor:
        self.told += 1
        for row, token in enumerate(input_ids[:, -1].tolist()):
            if not self.ended[row]:
                self.ended[row] = self._tell(self.requests[row], token, self.chooser.scores[row])
        return cast(torch.BoolTensor, torch.tensor(self.ended, device=input_ids.device))

    def _tell(self, request: AnswerRequest, token: int, score: TokenScore | None) -> bool:
        if request.cancelled.is_set():
            return True
        ends = request.on_token(token, score)
        return ends or token in self.stops or self.told >= request.sampling.max_new_tokens


def score_of(scores_V: torch.Tensor, token: int, num_top: int) -> TokenScore:
    """Log probabilities of a token and of the likeliest ones, before temperature and top-p."""
    logprobs_V = torch.log_softmax(scores_V.float(), dim=-1)
    values, places = logprobs_V.topk(num_top) if num_top else (logprobs_V[:0], logprobs_V[:0])
    top = tuple(zip(map(int, places.tolist()), values.tolist(), strict=True))
    return TokenScore(token, float(logprobs_V[token]), top)


def _generator(seed: int | None, device: torch.device) -> torch.Generator | None:
    return None if seed is None else torch.Generator(device).manual_seed(seed)
