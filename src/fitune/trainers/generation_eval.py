"""Questions of the held-out rows, answered by generation at each evaluation, scored and kept.

In: conversations that end with the wanted answer. Out: metrics, and rows of samples.jsonl: step, moment (before,
during, after), row (number in its file), asked, answer, wanted, exact_match, word_accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

from torch import nn

from fitune.answer_metrics import score
from fitune.data.examples import Example
from fitune.data.render.renderer import Renderer
from fitune.distributed import ranks, together
from fitune.evaluation.evaluate import AnswerRow, answer_rows
from fitune.evaluation.generation import LanguageModel
from fitune.evaluation.inference_model import Target
from fitune.trainers.oom_recovery import OomRecovery, PassSize
from fitune.trainers.parallel.sharding import is_sharded

EVALUATING = "evaluating"  # what the progress bar says, with the number of answers


class GenerationEval:
    """Callable of the trainer: model and step → metrics."""

    def __init__(
        self,
        renderer: Renderer,
        examples: Sequence[Example],
        max_new_tokens: int,
        batch_rows: int,
        keep: Callable[[list[dict[str, object]]], None],
    ):
        self.renderer = renderer
        self.examples = list(examples)
        self.max_new_tokens = max_new_tokens
        self.keep = keep
        self.recovery = OomRecovery(
            PassSize(batch_rows, "answer"),
            where=lambda: "while held-out questions are answered",
            advice="Lower eval.max_new_tokens",
        )

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        target = Target(model=cast("LanguageModel", model), renderer=self.renderer, base_name="", adapter=None)
        doing = f"held-out questions are answered at step {step}"
        mine = together.everywhere(doing, lambda: self.recovery.run(self._answered, target))
        rows = mine if is_sharded(model) else [row for part in together.gather(mine, doing) for row in part]
        moment = "before" if step == 0 else "during"
        self.keep([{"step": step, "moment": moment, **row} for row in rows])
        return score([row["answer"] for row in rows], [row["wanted"] for row in rows])

    def _answered(self, target: Target) -> list[AnswerRow]:
        # Sharded, all ranks answer all questions: each takes the same passes.
        alike = is_sharded(cast(nn.Module, target.model))
        own = self.examples if alike else self.examples[ranks.share(len(self.examples))]
        if not own:
            return []
        at_once = min(self.recovery.size.most, len(own))
        self.recovery.begin_pass(at_once)
        return answer_rows(target, own, self.max_new_tokens, at_once, EVALUATING)
