"""Questions of the held-out rows, answered by generation at each evaluation, scored and kept.

In: conversations that end with the wanted answer. Out: metrics, and rows of samples.jsonl:
step, moment (before, during, after), row (number in its file), asked (messages), wanted, answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from fitune.evaluate.generate import answer
from fitune.evaluate.metrics import score


def questions_of(examples: Sequence[Any], limit: int) -> list[Any]:
    """The first ``limit`` examples that end with an assistant's answer; plain text asks nothing."""
    asking = (example for example in examples if example.messages and example.messages[-1]["role"] == "assistant")
    return [example for example, _ in zip(asking, range(limit), strict=False)]


class Examiner:
    """Callable of the trainer: model and step → metrics."""

    def __init__(
        self,
        renderer: Any,
        examples: Sequence[Any],
        max_new_tokens: int,
        batch_rows: int,
        keep: Callable[[list[dict[str, Any]]], None],
    ):
        self.renderer = renderer
        self.examples = list(examples)
        self.max_new_tokens = max_new_tokens
        self.batch_rows = batch_rows
        self.keep = keep

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        asked = [list(example.messages[:-1]) for example in self.examples]
        wanted = [example.messages[-1]["content"] for example in self.examples]
        answers = answer(model, self.renderer, asked, max_new_tokens=self.max_new_tokens, batch=self.batch_rows)
        moment = "before" if step == 0 else "during"
        self.keep([
            {"step": step, "moment": moment, "row": example.row_number, "asked": question, "wanted": right, "answer": said}
            for example, question, right, said in zip(self.examples, asked, wanted, answers, strict=True)
        ])
        return score(answers, wanted)
