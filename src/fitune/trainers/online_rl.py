"""`OnlineRLTrainer`: what every method has that learns from the rewards of its own answers.

In: prompts, a mix of rewards, a model whose adapter is the policy. Out: steps; one step samples a batch of answers,
has them rewarded, and learns from them in one optimizer update or several.
Knows nothing of advantages or losses: `learn` of ppo.py and grpo.py is where these methods are told.

One base is in memory: the policy is it with its adapter, the reference is it with the adapter switched off (or with the
frozen adapter that the run started from).

B answers of a step, T tokens of the longest, R answers of a micro-batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Unpack, cast

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import TrainingArguments

from fitune.console import warn
from fitune.data.packing.bins import Mode
from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import PromptRow
from fitune.distributed import ranks, together
from fitune.errors import RewardError
from fitune.evaluation.generation import Sampling
from fitune.models.heads import head_of
from fitune.ops.packed_loss import split_model
from fitune.ops.token_logprobs import RowBatch, entry_logprobs, make_row_batch, states_of
from fitune.rewards.mix import Mix
from fitune.runs import checkpoints
from fitune.trainers.base import Batch, Collate, FituneTrainer, RowDataset, TrainerOptions
from fitune.trainers.oom_recovery import OomRecovery, PassSize
from fitune.trainers.parallel.dealt_batch import OWN, dealt
from fitune.trainers.parallel.rank_step import sum_over_ranks
from fitune.trainers.rl.losses import token_weights
from fitune.trainers.rl.rollout import RolloutBatch, sample_answers, step_seed
from fitune.trainers.rl.shared_scores import score_shared
from fitune.trainers.sampler import Numbered

PROMPTS = "prompts"
LearnFrom = Callable[["MicroBatch", Tensor, int], dict[str, float]]
CUT_OFF_REMINDER = 10  # steps between two warnings that every answer was cut off


@dataclass(frozen=True)
class Rollout:
    """How answers are sampled and learnt from; the plain values of the settings' ``rl`` section."""

    num_generations: int
    sampling: Sampling
    generation_batch_size: int
    truncated_reward: float | None
    num_iterations: int
    minibatches: int
    part_prompts: int
    loss_aggregation: str
    keep_samples: int


@dataclass(frozen=True, eq=False)
class MicroBatch:
    """Answers that share a forward pass."""

    numbers: Tensor
    """R numbers of the answers."""
    row_batch: RowBatch
    columns: Tensor
    """For each trained token of all rows its place in its answer."""


@dataclass(frozen=True, eq=False)
class ForwardOutput:
    """What a forward pass tells of the answers' tokens, each BT or RT, 0 past an answer's end."""

    logp: Tensor
    values: Tensor | None = None


class OnlineOptions(TrainerOptions):
    """What every `OnlineRLTrainer` is given, as its constructor says."""

    rollout: Rollout
    mix: Mix
    renderer: Renderer
    reference: Callable[[], AbstractContextManager[object]]
    mode: Mode
    keep: Callable[[list[dict[str, object]]], None]


class OnlineRLTrainer(FituneTrainer, ABC):
    """FituneTrainer over prompts.

    Args:
        rollout: how answers are sampled and learnt from.
        mix: the rewards.
        reference: makes a context in which the model answers as the reference does.
        mode: how rows are laid out, from `fitune.trainers.packing_support`.
        keep: takes rows of samples.jsonl.
        values: whether the model has a value head.
    """

    def __init__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_rows: Sequence[PromptRow],
        eval_rows: Sequence[PromptRow],
        collate: Collate[PromptRow],
        *,
        rollout: Rollout,
        mix: Mix,
        renderer: Renderer,
        reference: Callable[[], AbstractContextManager[object]],
        mode: Mode,
        keep: Callable[[list[dict[str, object]]], None],
        values: bool = False,
        **options: Unpack[TrainerOptions],
    ):
        size = PassSize(rollout.part_prompts * rollout.num_generations, "answer")
        super().__init__(model, args, train_rows, eval_rows, collate, pass_size=size, **options)
        self.sampling_recovery = OomRecovery(
            PassSize(rollout.generation_batch_size, "answer"),
            where=lambda: f"while the answers of step {self.state.global_step + 1} are sampled",
            advice="Lower rl.max_new_tokens",
            on_step_down=options.get("on_step_down"),
        )
        self.rollout, self.mix, self.renderer, self.reference = rollout, mix, renderer, reference
        self.mode: Mode = mode
        self.keep, self.values = keep, values
        self.answered: RolloutBatch | None = None
        self.mask = torch.zeros(0)
        self.take_whole_steps()
        self.micro_rows = None

    # ---- one step

    compares_groups = False
    """Whether an answer is only compared with the others to its prompt."""

    def no_signal(self) -> str | None:
        """Rewards tell answers apart, or nothing is learnt from them."""
        if self.step_metrics.get("reward_std") == 0:
            return f"every answer earned the same reward, {self.step_metrics['reward']:g}"
        if self.compares_groups and self.step_metrics.get("groups_alike") == 1:
            return "all answers to a prompt earned the same reward, for each prompt"
        return None

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Sample, reward, learn. The optimizer's last update of the step is left to transformers' loop."""
        if OWN in inputs:
            inputs = dealt(inputs)[OWN][0]
        prompts = cast("list[PromptRow]", inputs[PROMPTS])
        self.last_row_numbers = [prompt.row_number for prompt in prompts]
        self.answered = answered = self.sample(prompts)
        scores_B, watched = self.judge(answered)
        model.train()
        self.mask = self._mask(answered)
        learnt = self.learn(answered, scores_B)
        self.step_metrics = {**watched, **{name: float(value) for name, value in learnt.items()}}
        self.step_tokens = sum(row.num_tokens for row in answered.rows)
        self.step_loss = self.step_metrics["loss"]
        del self.step_metrics["loss"]
        return torch.tensor(self.step_loss, device=self.args.device)

    @abstractmethod
    def learn(self, answered: RolloutBatch, scores_B: Tensor) -> dict[str, float | Tensor]:
        """Everything from scores to gradients; returns metrics, among them ``loss``."""

    def sample(self, prompts: Sequence[PromptRow]) -> RolloutBatch:
        """The policy's answers to the step's prompts."""
        how, seed = self.rollout, step_seed(self.args.seed, self.state.global_step)
        return sample_answers(
            self.model,
            self.renderer,
            prompts,
            how.num_generations,
            how.sampling,
            how.generation_batch_size,
            seed,
            self.sampling_recovery,
        )

    def judge(self, answered: RolloutBatch) -> tuple[Tensor, dict[str, float]]:
        """Scores B, and what is worth watching of them; an answer without an end earns nothing by being long.

        Raises:
            RewardError: a reward failed; the state before this step is kept as a checkpoint.
        """
        try:
            scores, own = score_shared(self.mix, answered.samples, answered.per_prompt)
        except RewardError as error:
            said = f"step {self.state.global_step + 1}: {error}{self._rescue()}"
            raise together.told(RewardError(said)) from error
        if self.rollout.truncated_reward is not None:
            limit = self.rollout.truncated_reward
            scores = [
                score if sample.stopped else min(score, limit)
                for score, sample in zip(scores, answered.samples, strict=True)
            ]
        self._warn_of_endless(answered)
        self.keep(self._worst_and_best(answered, scores, own))
        scores_B = torch.tensor(scores, device=self.args.device)
        groups_PG = scores_B.view(answered.prompts, -1)
        lengths = answered.lengths
        watched = {
            "reward": float(scores_B.mean()),
            "reward_std": float(scores_B.std(unbiased=False)),
            "groups_alike": float((groups_PG.amax(1) == groups_PG.amin(1)).float().mean()),
            "answer_tokens": sum(lengths) / len(lengths),
            "stopped": answered.stopped_share,
        }
        if len(own) > 1:
            watched |= {f"reward_{name}": sum(values) / len(values) for name, values in own.items()}
        return scores_B, watched

    # ---- for `learn`

    def micro_batches(self, answered: RolloutBatch) -> list[MicroBatch]:
        """The answers, laid out for forward passes of ``part_prompts`` prompts each."""
        size = self.rollout.part_prompts * answered.per_prompt
        return [self._micro_batch(answered, start, start + size) for start in range(0, len(answered.rows), size)]

    def updates(self, micro_batches: Sequence[MicroBatch]) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each optimizer update: all of them once a pass, dealt out anew to the minibatches.

        Gradients of an update must be there when the next is asked for: the optimizer steps between two.
        """
        first = True
        for number in range(self.rollout.num_iterations):
            generator = torch.Generator().manual_seed(step_seed(self.args.seed, self.state.global_step, number + 1))
            order = torch.randperm(len(micro_batches), generator=generator).tolist()
            for minibatch in range(self.rollout.minibatches):
                chosen = order[minibatch :: self.rollout.minibatches]
                if not chosen:
                    continue
                if not first:
                    self._step_now()
                first = False
                yield [micro_batches[index] for index in chosen]

    def take_updates(self, micro_batches: Sequence[MicroBatch], learn_from: LearnFrom) -> dict[str, float]:
        """Every update of the step; one that runs out of memory is begun again, and those before it stand.

        Args:
            learn_from: forward and backward of a part of an update, from the part, the weights RT of its tokens and the
                number of tokens that the update learns from; returns what it measured.

        Returns:
            Of each measured number the sum over an update's parts, and of the sums the mean over the updates.
        """
        sums: dict[str, float] = defaultdict(float)
        count = 0
        for update in self.updates(micro_batches):
            count += 1
            for measured in self._take_on_ranks(partial(self._take_update, learn_from, update), update):
                for name, value in measured.items():
                    sums[name] += value
        return {name: total / count for name, total in sums.items()}

    def forward(self, micro_batch: MicroBatch) -> ForwardOutput:
        """One forward pass over a micro-batch: log-probabilities RT of its tokens, and their values where there is a head."""
        with self.accelerator.autocast():
            states = states_of(self.model, micro_batch.row_batch)
            head = split_model(self.model)[1]
            logp = entry_logprobs(states, head, micro_batch.row_batch, self.rollout.sampling.temperature)
            values = None
            if self.values:
                values = head_of(self.model)(states.index_select(0, micro_batch.row_batch.places))[
                    micro_batch.row_batch.entry_of
                ]
        return ForwardOutput(
            self._spread(logp, micro_batch), None if values is None else self._spread(values, micro_batch)
        )

    def score_no_grad(self, micro_batches: Sequence[MicroBatch], reference: bool) -> ForwardOutput:
        """`forward` at all answers without gradients, BT; as the reference sees them or as the policy does."""
        logp = torch.zeros_like(self.mask, dtype=torch.float32)
        values = torch.zeros_like(logp) if self.values and not reference else None

        def score(micro_batch: MicroBatch) -> None:
            for part in self._parts(micro_batch, self.eval_recovery):
                with torch.no_grad():
                    seen = self._as_reference(part) if reference else self.forward(part)
                logp[part.numbers] = seen.logp
                if values is not None and seen.values is not None:
                    values[part.numbers] = seen.values

        where = f"while the answers of step {self.state.global_step + 1} are scored"

        def score_own() -> None:
            for micro_batch in self.own_part(micro_batches):
                self.eval_recovery.run(score, micro_batch, where=lambda: where)

        together.everywhere(where.removeprefix("while "), score_own)
        return ForwardOutput(self.whole(logp), None if values is None else self.whole(values))

    def whole(self, table_BT: Tensor) -> Tensor:
        """A table of all answers of which each rank has filled the rows of its own, filled."""
        return sum_over_ranks(table_BT)

    def own_part(self, micro_batches: Sequence[MicroBatch]) -> list[MicroBatch]:
        """What this rank computes of some micro-batches: the answers to its share of their prompts."""
        if ranks.size() == 1:
            return list(micro_batches)
        assert self.answered is not None
        size = self.answered.per_prompt
        prompts = [
            (at, first)
            for at, micro_batch in enumerate(micro_batches)
            for first in micro_batch.numbers[::size].tolist()
        ]
        own = groupby(prompts[ranks.share(len(prompts))], key=lambda one: one[0])
        spans = [[first for _, first in group] for _, group in own]
        return [self._micro_batch(self.answered, firsts[0], firsts[-1] + size) for firsts in spans]

    def with_weights(
        self, update: Sequence[MicroBatch], own: Sequence[MicroBatch]
    ) -> Iterator[tuple[MicroBatch, Tensor]]:
        """Each part of an update that this rank takes, a micro-batch or what memory leaves of it, with the weights RT of
        its tokens, which sum over the update as ``loss_aggregation`` says."""
        numbers = torch.cat([micro_batch.numbers for micro_batch in update])
        weights = token_weights(self.mask[numbers], self.rollout.loss_aggregation, self.rollout.sampling.max_new_tokens)
        place = torch.zeros(len(self.mask), dtype=torch.long, device=numbers.device)
        place[numbers] = torch.arange(len(numbers), device=numbers.device)
        for micro_batch in own:
            for part in self._parts(micro_batch, self.recovery):
                yield part, weights[place[part.numbers]]

    def tokens_of(self, update: Sequence[MicroBatch]) -> int:
        """Tokens that an update learns from."""
        return max(sum(int(self.mask[micro_batch.numbers].sum()) for micro_batch in update), 1)

    def backward(self, loss: Tensor) -> None:
        """Gradients of a part's share of an update; halts when the loss is not finite."""
        if not torch.isfinite(loss):
            self.halt(f"the loss is {loss.item()}")
        self.accelerator.backward(loss)

    # ---- rows, checkpoints, evaluation

    @property
    def layout(self) -> str:
        return self.mode

    @property
    def train_collator(self) -> Callable[[Sequence[PromptRow]], Batch]:
        return keep_prompts

    def deal(self, rows: Sequence[PromptRow]) -> list[list[int]]:
        """Every rank takes all prompts: their answers are what is dealt out."""
        return [list(range(len(rows)))] * ranks.size()

    def rows_size(self, rows: Sequence[PromptRow]) -> tuple[int, int]:
        return 0, 1

    def step_size(self, batches: Sequence[Batch]) -> tuple[int, int]:
        """Nothing is known of a step before its answers are; `training_step` counts their tokens."""
        return 0, 1

    def evaluate(
        self,
        eval_dataset: Dataset[Numbered] | dict[str, Dataset[Numbered]] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As `FituneTrainer.evaluate`; a reward that fails here leaves the steps before it to resume from, too."""
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        except RewardError as error:
            said = f"evaluation at step {self.state.global_step}: {error}{self._rescue()}"
            raise together.told(RewardError(said)) from error

    def measure(self, eval_dataset: RowDataset[Numbered] | None) -> dict[str, float]:
        return {}  # everything is measured on answers, by ``examine``

    # ---- inside

    def _take_update(
        self, learn_from: LearnFrom, update: Sequence[MicroBatch], own: Sequence[MicroBatch]
    ) -> list[dict[str, float]]:
        tokens = self.tokens_of(update)
        return [learn_from(part, weights, tokens) for part, weights in self.with_weights(update, own)]

    def _take_on_ranks(
        self, take: Callable[[Sequence[MicroBatch]], list[dict[str, float]]], update: Sequence[MicroBatch]
    ) -> list[dict[str, float]]:
        """An update by ``take``, each rank its part; then gradients are summed. Returns what all of them measured."""
        own = self.own_part(update)
        if ranks.size() == 1:
            return self.recovery.run(take, own)
        failure, measured = None, list[dict[str, float]]()
        try:
            measured = self.recovery.run(take, own)
        except Exception as error:  # told to the others, who wait for this rank's gradients
            failure = error
        every = self.share_part(0.0, measured, failure)
        return [one for report in every for one in cast("list[dict[str, float]]", report.measured)]

    def _parts(self, micro_batch: MicroBatch, recovery: OomRecovery) -> Iterator[MicroBatch]:
        """The micro-batch as it is, or laid out anew in smaller ones where memory asks for it."""
        count = len(micro_batch.numbers)
        if count <= recovery.size.most:
            recovery.begin_pass(count, micro_batch.row_batch.computed_tokens)
            yield micro_batch
            return
        assert self.answered is not None
        first = int(micro_batch.numbers[0])
        for here in recovery.slices(count):
            part = self._micro_batch(self.answered, first + here.start, first + here.stop)
            recovery.begin_pass(len(part.numbers), part.row_batch.computed_tokens)
            yield part

    def _as_reference(self, micro_batch: MicroBatch) -> ForwardOutput:
        with self.reference():
            return self.forward(micro_batch)

    def _step_now(self) -> None:
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        if self.args.max_grad_norm:
            trained = [value for _, value in self.trained_parameters()]
            self.accelerator.clip_grad_norm_(trained, self.args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    def _micro_batch(self, answered: RolloutBatch, start: int, stop: int) -> MicroBatch:
        device = self.args.device
        rows = answered.rows[start:stop]
        columns = [torch.arange(row.num_trained, device=device) for row in rows]
        numbers = torch.arange(start, start + len(rows), device=device)
        return MicroBatch(numbers, make_row_batch(rows, self.mode, device), torch.cat(columns))

    def _mask(self, answered: RolloutBatch) -> Tensor:
        """Bool BT."""
        lengths_B = torch.tensor(answered.lengths, device=self.args.device)
        return torch.arange(int(lengths_B.max()), device=self.args.device) < lengths_B[:, None]

    def _spread(self, flat: Tensor, micro_batch: MicroBatch) -> Tensor:
        """One number a trained token → RT."""
        table = flat.new_zeros(micro_batch.row_batch.num_rows, self.mask.shape[1])
        return table.index_put((micro_batch.row_batch.row_of, micro_batch.columns), flat)

    def _warn_of_endless(self, answered: RolloutBatch) -> None:
        if answered.stopped_share > 0:
            self.extra_state["steps_without_end"] = 0
            return
        count = self.extra_state["steps_without_end"] = self.extra_state.get("steps_without_end", 0) + 1
        if count % CUT_OFF_REMINDER == 1:
            warn(
                f"step {self.state.global_step + 1}: every answer was truncated at rl.max_new_tokens "
                f"{self.rollout.sampling.max_new_tokens}, so none ended by itself; raise the limit, or start "
                "from a model that has learnt to stop"
            )

    def _worst_and_best(
        self, answered: RolloutBatch, scores: Sequence[float], own: dict[str, list[float]]
    ) -> list[dict[str, object]]:
        """Rows for samples.jsonl: the lowest rewards, then the highest."""
        order = sorted(range(len(scores)), key=lambda index: scores[index])
        half = self.rollout.keep_samples // 2
        chosen = order if len(order) <= 2 * half else [*order[:half], *order[len(order) - half :]]
        return [
            {
                "step": self.state.global_step + 1,
                "moment": "rollout",
                "row": answered.samples[index].row_number,
                "asked": answered.samples[index].question,
                "answer": answered.samples[index].answer,
                "wanted": answered.samples[index].wanted or "",
                "reward": scores[index],
                "rewards": {name: values[index] for name, values in own.items()},
                "tokens": answered.samples[index].tokens,
                "stopped": answered.samples[index].stopped,
            }
            for index in (chosen if half else [])
        ]

    def _rescue(self) -> str:
        """Keep the state before this step, so that a resumed run loses nothing; says so."""
        step = self.state.global_step
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{step}"
        if step == 0:
            return "; no step is complete yet"
        if not checkpoints.is_complete(folder):
            self._save_checkpoint(self.model, None)
        return f"; the {step} steps before are kept, and a resumed run continues from there"


def keep_prompts(rows: Sequence[PromptRow]) -> Batch:
    """The collator: prompts as they are."""
    return {PROMPTS: list(rows)}
