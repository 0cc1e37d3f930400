"""A reward model's opinion of answers: rows of a file → a number each; pairs → which answer it prefers.

In: a run of method reward (or its adapter folder), rows of any form with answers. Out: `Scores`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import correlation, mean
from typing import TYPE_CHECKING, TypedDict

import torch

from fitune.adapters.adapter_folder import read_facts
from fitune.data.examples import Example
from fitune.data.packing.padding import pad_collate
from fitune.data.read.files import Rows, read_rows
from fitune.data.read.recognise import holds, recognise
from fitune.data.read.sources import DataOptions, convert_all, demo_rows
from fitune.data.token_rows import TokenRow
from fitune.demo.tasks import is_demo
from fitune.errors import DataError, ModelError
from fitune.evaluation.inference_model import Target
from fitune.models.base_model import base_model_of
from fitune.models.heads import ScalarHead, read_head

if TYPE_CHECKING:
    from fitune.evaluation.generation import LanguageModel


class ScoredAnswer(TypedDict):
    """An answer and its reward; row: its number in the file."""

    row: int
    asked: str
    answer: str
    reward: float


class ScoredPair(TypedDict):
    """Two answers to a question and their rewards; margin: the chosen one's less the other's."""

    row: int
    asked: str
    chosen: str
    rejected: str
    reward_chosen: float
    reward_rejected: float
    margin: float


@dataclass(frozen=True)
class Scores:
    """What a reward model said.

    `metrics`: over pairs accuracy, margin and how far reward follows length; over answers
    mean, least and most.
    """

    rows: Sequence[ScoredAnswer | ScoredPair]
    metrics: dict[str, float]

    def to_dict(self) -> dict[str, object]:
        """For `--json`."""
        return {"metrics": self.metrics, "rows": self.rows}


@dataclass(frozen=True, eq=False)
class RewardModel:
    """A base with a reward adapter switched on, and its head."""

    target: Target
    head: ScalarHead

    def rewards(self, examples: Sequence[Example], batch_rows: int = 8) -> list[float]:
        """One number for the last answer of each conversation."""
        return self.rewards_of_rows(self.token_rows(examples), batch_rows)

    def token_rows(self, examples: Sequence[Example]) -> list[TokenRow]:
        """The conversations as tokens up to the end of the last answer, where a reward is read."""
        renderer = self.target.renderer
        return list(renderer.tokenize([row for one in examples for row in renderer.render(one, "last_assistant")]))

    @torch.no_grad()
    def rewards_of_rows(self, rows: Sequence[TokenRow], batch_rows: int = 8) -> list[float]:
        """One number for each row of tokens, read at its last token; rows of like length share a forward pass."""
        limit = getattr(self.target.model.config.get_text_config(), "max_position_embeddings", None)
        for row in rows:
            if limit and row.num_tokens > limit:
                raise DataError(
                    f"row {row.row_number} has {row.num_tokens:,} tokens and the model has {limit:,} positions; "
                    "shorten it or drop it"
                )
        order = sorted(range(len(rows)), key=lambda at: rows[at].num_tokens)
        found = [0.0] * len(rows)
        for start in range(0, len(order), batch_rows):
            here = order[start : start + batch_rows]
            rewards = self.head(end_states(self.target.model, [rows[at] for at in here])).tolist()
            for at, reward in zip(here, rewards, strict=True):
                found[at] = reward
        return found


def end_states(model: LanguageModel, rows: Sequence[TokenRow]) -> torch.Tensor:
    """Hidden states behind the last norm at each row's last token: (rows, hidden size)."""
    inner = base_model_of(model)
    device = next(model.parameters()).device
    batch = pad_collate(rows, pad_id=0)
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    states = getattr(inner, inner.base_model_prefix)(**inputs, use_cache=False).last_hidden_state
    return states[torch.arange(len(rows)), torch.tensor([row.num_tokens - 1 for row in rows])]


def open_reward_model(target: Target) -> RewardModel:
    """The head that belongs to an opened reward run.

    Raises:
        ModelError: the target is no reward model.
    """
    facts = read_facts(target.adapter) if target.adapter else {}
    if "reward" not in facts:
        what = f"the adapter in {target.adapter}" if target.adapter else target.base_name
        raise ModelError(f"{what} is not a reward model; `fitune score` needs a run of method reward")
    head = read_head(Path(str(target.adapter)), target.model.config.get_text_config().hidden_size)
    return RewardModel(target, head.to(next(target.model.parameters()).device).eval())


def score(model: RewardModel, data: str, options: DataOptions, limit: int | None = None) -> Scores:
    """Score a data set: preference rows, or any rows that end with an answer.

    Raises:
        DataError: unreadable rows, or rows without answers.
    """
    tokenizer = model.target.renderer.tokenizer
    source = demo_rows(data, tokenizer, options.seed) if is_demo(data) else read_rows(data, options.hub_split)
    if holds("pairs", source.columns):
        return _score_pairs(model, source, options, limit)
    form = recognise(source.columns, options.form, options.columns)
    examples = convert_all(source, form, lambda row, number: form.to_example(row, options.system, number))[:limit]
    if any(example.messages is None for example in examples):
        raise DataError(
            f"{data} is plain text; a reward model scores an answer to a prompt (columns prompt, completion)"
        )
    rewards = model.rewards(examples)
    rows: list[ScoredAnswer] = [
        {"row": example.row_number, "asked": _asked(example), "answer": _answer(example), "reward": reward}
        for example, reward in zip(examples, rewards, strict=True)
    ]
    return Scores(rows, {"rows": len(rows), "mean": mean(rewards), "least": min(rewards), "most": max(rewards)})


def _score_pairs(model: RewardModel, source: Rows, options: DataOptions, limit: int | None) -> Scores:
    """Both answers of each pair, and how often the chosen one has the higher reward."""
    form = recognise(source.columns, "auto", options.columns, kind="pairs")
    pairs = convert_all(source, form, lambda row, number: form.to_pair(row, options.system, number))[:limit]
    sides = [pair.example(better) for pair in pairs for better in (True, False)]
    tokens = model.token_rows(sides)
    rewards = model.rewards_of_rows(tokens)
    better, worse = rewards[::2], rewards[1::2]
    rows: list[ScoredPair] = [
        {
            "row": pair.row_number,
            "asked": pair.prompt[-1]["content"],
            "chosen": pair.texts[0],
            "rejected": pair.texts[1],
            "reward_chosen": one,
            "reward_rejected": other,
            "margin": one - other,
        }
        for pair, one, other in zip(pairs, better, worse, strict=True)
    ]
    lengths = [float(row.num_trained) for row in tokens]
    metrics = {
        "rows": len(rows),
        "accuracy": mean(1.0 if a > b else 0.5 if a == b else 0.0 for a, b in zip(better, worse, strict=True)),
        "margin": mean(row["margin"] for row in rows),
        "length_correlation": correlation(rewards, lengths) if len(set(rewards)) > 1 and len(set(lengths)) > 1 else 0.0,
        "longer_is_preferred": mean(
            float((a > b) == (one > other))
            for a, b, one, other in zip(better, worse, lengths[::2], lengths[1::2], strict=True)
        ),
    }
    return Scores(rows, metrics)


def _asked(example: Example) -> str:
    """The last question."""
    return next((said["content"] for said in reversed(example.messages or ()) if said["role"] == "user"), "")


def _answer(example: Example) -> str:
    return (example.messages or ({"content": ""},))[-1]["content"]
