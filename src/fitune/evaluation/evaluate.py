"""Measure a model on a data file: loss on the trained tokens, answers by generation, a row each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, NotRequired

from fitune.answer_metrics import RowScores, row_scores, score
from fitune.console import follow
from fitune.data.examples import Example
from fitune.data.packing.padding import pad_collate
from fitune.data.read.sources import DataOptions
from fitune.data.render.renderer import Renderer
from fitune.data.sft import load_examples, loss_target, render_all
from fitune.data.token_rows import TokenRow
from fitune.errors import DataError, ModelError
from fitune.evaluation.generation import Answer, Sampling, asking, complete
from fitune.evaluation.inference_model import Target
from fitune.evaluation.tool_calls import same_calls
from fitune.models.base_model import base_model_of
from fitune.models.length_rules import by_side, forget_length, length_rule
from fitune.ops.label_loss import Chunking, label_loss

if TYPE_CHECKING:
    from pandas import DataFrame

    from fitune.evaluation.generation import LanguageModel


class AnswerRow(RowScores):
    """An answer beside the wanted one; row: its number in the data, stopped: it ended by itself."""

    row: int
    asked: str
    answer: str
    stopped: bool
    wanted: str
    calls_right: NotRequired[bool]
    reasoning: NotRequired[str]


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Metrics of a dataset, and each row."""

    metrics: dict[str, float]
    rows: list[AnswerRow]

    def to_dict(self) -> dict[str, object]:
        """Plain values for `--json`."""
        return {"metrics": self.metrics, "rows": self.rows}

    def frame(self) -> DataFrame:
        """The rows as a data frame."""
        import pandas

        return pandas.DataFrame(self.rows)

    def __repr__(self) -> str:
        return "Evaluation(" + ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items()) + ")"

    def _repr_html_(self) -> str:
        cells = "".join(
            f"<tr><td>{name.replace('_', ' ')}</td><td>{value:.4g}</td></tr>" for name, value in self.metrics.items()
        )
        named = ("asked", "answer", "wanted")
        lines = "".join(
            "<tr>" + "".join(f"<td>{escape(row[name])}</td>" for name in named) + "</tr>" for row in self.rows[:5]
        )
        rows = f"<table><tr><th>prompt<th>answer<th>reference</tr>{lines}</table>" if lines else ""
        return f"<table>{cells}</table>{rows}"


def evaluate(
    target: Target,
    data: str,
    options: DataOptions,
    limit: int | None = None,
    max_new_tokens: int = 128,
    batch: int = 16,
) -> Evaluation:
    """Loss per trained token and, for rows that end with an answer, generated answers against it.

    Raises:
        DataError: as `prepare`; or no row has a token to measure.
    """
    _, form, examples = load_examples(data, target.renderer, options)
    examples = examples[:limit]
    loss_on = loss_target(options, form)
    rendered = render_all(data, examples, target.renderer, loss_on, options.response_template)
    rows = [row for row in target.renderer.tokenize(rendered) if row.num_trained]
    if not rows:
        raise DataError(f"{data}: no row has a token to measure; data.loss_on is {loss_on}")
    pad_id = target.renderer.tokenizer.pad_token_id
    metrics: dict[str, float] = {"loss": loss_of(target.model, rows, pad_id, batch, "measuring the loss, row")}
    asking = [example for example in examples if example.messages and example.messages[-1]["role"] == "assistant"]
    answered = answer_rows(target, asking, max_new_tokens, batch, "answering, row")
    if answered:
        metrics |= score([row["answer"] for row in answered], [row["wanted"] for row in answered])
        metrics["stopped"] = sum(row["stopped"] for row in answered) / len(answered)
    if calls := [row["calls_right"] for row in answered if "calls_right" in row]:
        metrics["calls_right"] = sum(calls) / len(calls)
    return Evaluation({**metrics, "rows": len(examples)}, answered)


def answer_rows(
    target: Target, examples: Sequence[Example], max_new_tokens: int, batch: int, label: str = ""
) -> list[AnswerRow]:
    """Each example's last answer generated anew and set beside the wanted one; `stopped`: it ended by itself."""
    prompts = [target.renderer.question_ids(example) for example in examples]
    answers = complete(target.model, target.renderer, prompts, Sampling(max_new_tokens), batch, label)
    return [_answer_row(example, said, target.renderer) for example, said in zip(examples, answers, strict=True)]


def _answer_row(example: Example, said: Answer, renderer: Renderer) -> AnswerRow:
    """An answer beside the wanted one; of calls, the texts as the template writes them, and whether they are the same."""
    messages = list(example.messages or ())
    answer, wanted = said.text, messages[-1]["content"].strip()
    calls = bool(messages[-1].get("tool_calls"))
    if calls:
        answer, wanted = said.raw.strip(), renderer.without_end(renderer.last_turn(example).answer).strip()
    row: AnswerRow = {
        "row": example.row_number,
        "asked": messages[-2]["content"] if len(messages) > 1 else "",
        "answer": answer,
        "stopped": said.stopped,
        "wanted": wanted,
        **row_scores(answer, wanted),
    }
    if calls:
        row["calls_right"] = same_calls(answer, wanted)
    if said.reasoning:
        row["reasoning"] = said.reasoning
    return row


def loss_of(model: LanguageModel, rows: Sequence[TokenRow], pad_id: int, batch: int, label: str = "") -> float:
    """Mean cross entropy of a trained token over all rows; logits only where one is predicted."""
    total, count = 0.0, 0
    ordered, rule = sorted(rows, key=lambda row: row.num_tokens), length_rule(base_model_of(model).config)
    with asking(model):
        for first in follow(range(0, len(ordered), batch), label):
            chosen = ordered[first : first + batch]
            inputs = {name: value.to(model.device) for name, value in pad_collate(chosen, pad_id).items()}
            for part in by_side(inputs, rule):
                forget_length(model, rule)
                total += label_loss(model, part, 1, Chunking(nullcontext)).item()
            count += sum(row.num_trained for row in chosen)
    if not math.isfinite(total):
        raise ModelError(
            f"the loss is {total}: the model's weights or logits are no finite numbers, nothing is measured"
        )
    return total / count
