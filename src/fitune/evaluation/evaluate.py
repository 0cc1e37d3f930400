"""Measure a model on a data file: loss on the trained tokens, answers by generation, a row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fitune.answer_metrics import row_scores, score
from fitune.data.packing.padding import pad_collate
from fitune.data.read.sources import DataOptions
from fitune.data.rows import Example, TokenRow
from fitune.data.sft import load_examples, loss_target
from fitune.errors import DataError
from fitune.evaluation.generation import Sampling, _asking, complete, follow
from fitune.evaluation.inference_model import Target
from fitune.ops.label_loss import label_loss


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a data set, and each row: asked, answer, stopped, wanted, word_accuracy, exact_match."""

    metrics: dict[str, float]
    rows: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {"metrics": self.metrics, "rows": self.rows}


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
    rendered = [target.renderer.render(example, loss_on, options.response_template) for example in examples]
    rows = [row for row in target.renderer.tokenize(rendered) if row.num_trained]
    if not rows:
        raise DataError(f"{data}: no row has a token to measure; data.loss_on is {loss_on}")
    pad_id = target.renderer.tokenizer.pad_token_id
    metrics: dict[str, float] = {"loss": loss_of(target.model, rows, pad_id, batch, "loss")}
    asking = [example for example in examples if example.messages and example.messages[-1]["role"] == "assistant"]
    answered = answer_rows(target, asking, max_new_tokens, batch, "answers")
    if answered:
        metrics |= score([row["answer"] for row in answered], [row["wanted"] for row in answered])
        metrics["stopped"] = sum(row["stopped"] for row in answered) / len(answered)
    return Evaluation({**metrics, "rows": len(examples)}, answered)


def answer_rows(
    target: Target, examples: Sequence[Example], max_new_tokens: int, batch: int, label: str = ""
) -> list[dict[str, Any]]:
    """Each example's last answer generated anew and set beside the wanted one; `stopped`: it ended by itself."""
    asked = [list((example.messages or ())[:-1]) for example in examples]
    wanted = [example.messages[-1]["content"].strip() if example.messages else "" for example in examples]
    prompts = [target.renderer.prompt_ids(messages) for messages in asked]
    answers = complete(target.model, target.renderer, prompts, Sampling(max_new_tokens), batch, label)
    return [
        {
            "row": example.row_number,
            "asked": question[-1]["content"] if question else "",
            "answer": said.text,
            "stopped": said.stopped,
            "wanted": right,
            **row_scores(said.text, right),
        }
        for example, question, said, right in zip(examples, asked, answers, wanted, strict=True)
    ]


def loss_of(model: Any, rows: Sequence[TokenRow], pad_id: int, batch: int, label: str = "") -> float:
    """Mean cross entropy of a trained token over all rows; logits only where one is predicted."""
    total, count = 0.0, 0
    ordered = sorted(rows, key=lambda row: len(row.input_ids))
    with _asking(model):
        for first in follow(range(0, len(ordered), batch), label):
            chosen = ordered[first : first + batch]
            inputs = {name: value.to(model.device) for name, value in pad_collate(chosen, pad_id).items()}
            total += label_loss(model, inputs, 1).item()
            count += sum(row.num_trained for row in chosen)
    return total / count
