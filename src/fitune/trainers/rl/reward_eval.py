"""Held-out prompts, answered greedily at each evaluation and rewarded as in training.

In: prompts, rewards. Out: metrics, and rows of samples.jsonl as those of `fitune.trainers.generation_eval`, with the reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from fitune.answer_metrics import row_scores, score
from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import PromptRow
from fitune.evaluation.generation import Sampling
from fitune.rewards.mix import Mix
from fitune.trainers.oom_recovery import OomRecovery, PassSize
from fitune.trainers.rl.rollout import sample_answers
from fitune.trainers.rl.shared_scores import score_shared


class RewardEval:
    """Callable of the trainer: model and step → reward, the parts of it, answer_tokens, stopped, and the scores against
    the wanted answers where the data has them."""

    def __init__(
        self,
        renderer: Renderer,
        prompts: Sequence[PromptRow],
        mix: Mix,
        max_new_tokens: int,
        generation_batch_size: int,
        truncated_reward: float | None,
        keep: Callable[[list[dict[str, object]]], None],
    ):
        self.renderer, self.prompts, self.mix = renderer, list(prompts), mix
        self.sampling, self.generation_batch_size = Sampling(max_new_tokens), generation_batch_size
        self.truncated_reward, self.keep = truncated_reward, keep
        self.recovery = OomRecovery(
            PassSize(generation_batch_size, "answer"),
            where=lambda: "while held-out prompts are answered",
            advice="Lower eval.max_new_tokens",
        )

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        answered = sample_answers(
            model,
            self.renderer,
            self.prompts,
            1,
            self.sampling,
            self.generation_batch_size,
            seed=0,
            recovery=self.recovery,
        )
        scores, own = score_shared(self.mix, answered.samples, 1)
        if (limit := self.truncated_reward) is not None:
            pairs = zip(scores, answered.samples, strict=True)
            scores = [score if sample.stopped else min(score, limit) for score, sample in pairs]
        moment = "before" if step == 0 else "during"
        self.keep(
            [
                {
                    "step": step,
                    "moment": moment,
                    "row": sample.row_number,
                    "asked": sample.question,
                    "answer": sample.answer,
                    "stopped": sample.stopped,
                    "wanted": sample.wanted or "",
                    "reward": reward,
                    **row_scores(sample.answer, sample.wanted or ""),
                }
                for sample, reward in zip(answered.samples, scores, strict=True)
            ]
        )
        found = {
            "reward": sum(scores) / len(scores),
            "answer_tokens": sum(answered.lengths) / len(scores),
            "stopped": answered.stopped_share,
        }
        if len(own) > 1:
            found |= {f"reward_{name}": sum(values) / len(values) for name, values in own.items()}
        pairs = [(sample.answer, sample.wanted) for sample in answered.samples if sample.wanted is not None]
        if len(pairs) == len(scores):
            found |= score([answer for answer, _ in pairs], [wanted for _, wanted in pairs])
        return found
