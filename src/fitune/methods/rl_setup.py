"""What the methods share that learn from rewards: the policy, the rewards, the sampling, the trainer over them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol, TypeVar, Unpack

import torch
from peft import PeftModel
from torch import nn
from transformers import TrainingArguments

from fitune.adapters.reference import as_reference
from fitune.console import log, warn
from fitune.data.token_rows import PromptRow, TokenRow
from fitune.evaluation.generation import Sampling
from fitune.methods.adapt import adapt_with_reference
from fitune.methods.context import RunContext
from fitune.methods.method import Method, OnlineDefaults
from fitune.methods.rl_config import RlSettings
from fitune.methods.trainer_parts import lay_out, listeners, note_step_down
from fitune.rewards.library import Reward
from fitune.rewards.mix import Mix, Sample, read_mix
from fitune.trainers.base import Collate
from fitune.trainers.online_rl import OnlineOptions, OnlineRLTrainer, Rollout, keep_prompts
from fitune.trainers.rl.reward_eval import RewardEval
from fitune.trainers.rl.reward_model import load_reward_model

Options = TypeVar("Options", contravariant=True)


class OnlineKind(Protocol[Options]):
    """The class of a method's trainer, with options of its own."""

    def __call__(
        self,
        model: nn.Module,
        args: TrainingArguments,
        train_rows: Sequence[PromptRow],
        eval_rows: Sequence[PromptRow],
        collate: Collate[PromptRow],
        *,
        options: Options,
        **parts: Unpack[OnlineOptions],
    ) -> OnlineRLTrainer: ...


def adapt_policy(run: RunContext) -> PeftModel:
    """The policy's adapter, fresh or where another run left it; then its start stays beside it as the reference."""
    model = adapt_with_reference(run)
    assert isinstance(model, PeftModel)
    without_dropout(model)
    return model


def choose_rl(run: RunContext, method: Method) -> OnlineDefaults:
    """What was set, and the method's own where nothing was."""
    rl, own = run.own(RlSettings), method.sampling
    assert own is not None
    return OnlineDefaults(
        num_generations=rl.num_generations or own.num_generations,
        num_iterations=rl.num_iterations or own.num_iterations,
        kl_coef=own.kl_coef if rl.kl_coef is None else rl.kl_coef,
    )


def make_online_trainer(
    kind: OnlineKind[Options], options: Options, chosen: OnlineDefaults, run: RunContext, model: nn.Module
) -> OnlineRLTrainer:
    """The trainer of a method, with its rewards, its reference and everything that listens to it.

    Args:
        options: the method's own, a keyword of ``kind``.
        chosen: from `choose_rl`.
    """
    assert isinstance(model, PeftModel)
    rl, how, prompts = run.own(RlSettings), rollout_of(run, chosen), run.data.train
    longest = max(row.num_tokens for row in [*prompts, *run.data.eval]) + rl.max_new_tokens
    mode = lay_out(run, model, [trial_row(row) for row in prompts], longest).mode
    half = torch.bfloat16 if run.arguments.bf16 else torch.float16
    mixed = run.arguments.bf16 or run.arguments.fp16
    autocast = partial(torch.autocast, run.device, dtype=half, enabled=mixed)

    def open_run(name: str) -> Reward:
        return load_reward_model(
            model, name, run.base.template, run.runs_folder, mode, rl.generation_batch_size, autocast
        )

    mix = read_mix(rl.rewards, rl.reward_seconds, open_run)
    mix.try_out([trial_sample(row) for row in prompts[:4]])
    log_step(run.batch_size, how, mix, chosen.kl_coef)
    questions = run.data.eval[: run.eval_samples]
    examiner = RewardEval(
        run.renderer,
        questions,
        mix,
        run.eval_new_tokens,
        rl.generation_batch_size,
        rl.truncated_reward,
        run.folder.log_samples,
    )
    return kind(
        model,
        run.arguments,
        train_rows=prompts,
        eval_rows=questions,
        collate=keep_prompts,
        extra_metrics=examiner if questions else None,
        keep_checkpoints=run.keep_checkpoints,
        callbacks=listeners(run),
        options=options,
        rollout=how,
        mix=mix,
        renderer=run.renderer,
        reference=partial(as_reference, model),
        mode=mode,
        keep=run.folder.log_samples,
        on_step_down=note_step_down(run),
    )


def rollout_of(run: RunContext, chosen: OnlineDefaults) -> Rollout:
    """How answers are sampled and learnt from."""
    rl = run.own(RlSettings)
    return Rollout(
        num_generations=chosen.num_generations,
        sampling=Sampling(rl.max_new_tokens, rl.temperature, rl.top_p),
        generation_batch_size=rl.generation_batch_size,
        truncated_reward=rl.truncated_reward,
        num_iterations=chosen.num_iterations,
        minibatches=rl.minibatches,
        part_prompts=min(run.schedule.micro_batch_rows, -(-run.batch_size // rl.minibatches)),
        loss_aggregation=rl.loss_aggregation,
        keep_samples=rl.keep_samples,
    )


def log_step(batch_size: int, rollout: Rollout, mix: Mix, kl_coef: float) -> None:
    """Say what a step is."""
    count = batch_size * rollout.num_generations
    rewards = ", ".join(part.name if part.weight == 1 else f"{part.weight:g}*{part.name}" for part in mix.parts)
    log(
        f"each step: {batch_size} prompts with {rollout.num_generations} answers each ({count} in all), "
        f"{rollout.num_iterations} passes of {rollout.minibatches} updates; rewards: {rewards}; kl_coef {kl_coef:g}"
    )


def without_dropout(model: nn.Module) -> int:
    """Switch every dropout off, since a policy that differs from itself by chance has no ratio of 1; returns how many
    were on."""
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    for module in dropouts:
        module.p = 0.0
    if dropouts:
        warn(
            f"{len(dropouts)} dropout layers are switched off: with them the policy's log-probabilities would be random"
        )
    return len(dropouts)


def trial_row(row: PromptRow) -> TokenRow:
    """A prompt as a row to try a layout on: the second half of its tokens is to be foretold."""
    half = len(row.input_ids) // 2
    return TokenRow(row.input_ids, (False,) * half + (True,) * (len(row.input_ids) - half), row.row_number)


def trial_sample(row: PromptRow) -> Sample:
    """An answer that was not sampled: the wanted one, or the question given back."""
    asked = next((message["content"] for message in reversed(row.messages) if message["role"] == "user"), "")
    return Sample(
        answer=row.reference or asked,
        question=asked,
        prompt=asked,
        messages=row.messages,
        wanted=row.reference,
        token_ids=row.input_ids,
        row_number=row.row_number,
        row=dict(row.columns),
    )
