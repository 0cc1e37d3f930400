"""The next tokens of some rows of a batch, drawn with the random numbers that they would have had in the whole batch.

In: scores of the rows that are sampled at once. Out: scores that leave one token each.
`generate` draws by torch.multinomial, which takes one exponential number for each row and token of the batch and picks
the largest of probability over number (ATen, Distributions.cpp, multinomial_out: the path for a single draw). Here the
same table is drawn for the whole batch, and the rows at hand take theirs from it.

R rows at hand, B rows of the whole batch, V tokens of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from fitune.evaluation.generation import Sampling


class DrawsOfWholeBatch(LogitsProcessor):
    """For a `generate` that takes the likeliest token, of which there is one when this is done.

    Args:
        sampling: how tokens would be sampled; its temperature is above 0.
        rows: which rows of the whole batch are at hand.
        count: rows of the whole batch.
    """

    def __init__(self, sampling: Sampling, rows: slice, count: int):
        self.rows, self.count = rows, count
        self.warpers: list[LogitsProcessor] = []
        if sampling.temperature != 1:
            self.warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_p < 1:
            self.warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        scores_RV = scores
        for warper in self.warpers:
            scores_RV = warper(input_ids, scores_RV)  # type: ignore[arg-type]
        chances_RV = scores_RV.softmax(-1)
        noise_BV = chances_RV.new_empty(self.count, chances_RV.shape[1]).exponential_()
        drawn_R1 = (chances_RV / noise_BV[self.rows]).argmax(-1, keepdim=True)
        return torch.full_like(scores_RV, -torch.inf).scatter(1, drawn_R1, 0.0)
