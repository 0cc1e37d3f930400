"""The next-token view: at each step the likeliest tokens with their probabilities. V tokens in the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from fitune.data.render.renderer import Renderer
from fitune.evaluation.generation import asking, check_fits

if TYPE_CHECKING:
    from fitune.evaluation.generation import LanguageModel


@dataclass(frozen=True)
class Step:
    """One step: the candidates from the likeliest down, and the token that was taken."""

    tokens: tuple[str, ...]
    ids: tuple[int, ...]
    probabilities: tuple[float, ...]

    @property
    def chosen(self) -> str:
        """The likeliest token, which the next step follows."""
        return self.tokens[0]


def next_tokens(
    model: LanguageModel, renderer: Renderer, prompt: Sequence[int], top: int = 5, steps: int = 8
) -> Iterator[Step]:
    """Follow the likeliest token for `steps` steps, or to the end token; yields the `top` candidates of each.

    Raises:
        ModelError: an empty prompt, or one that does not fit the context with `steps` more tokens.
    """
    check_fits(model, prompt, steps)
    ids = torch.tensor([list(prompt)], device=model.device)
    cache = DynamicCache(config=model.config)
    with asking(model):
        for _ in range(steps):
            output = model(input_ids=ids, cache=cache, use_cache=True, logits_to_keep=1)
            probabilities = output.logits[0, -1].float().softmax(-1)
            best = probabilities.topk(min(top, len(probabilities)))
            chosen = best.indices.tolist()
            texts = tuple(renderer.tokenizer.decode([token]) for token in chosen)
            yield Step(texts, tuple(chosen), tuple(best.values.tolist()))
            if chosen[0] in renderer.stop_ids:
                return
            ids = best.indices[:1].unsqueeze(0)
