"""From settings to the trainer of a method that learns from rewards; what ppo and grpo share of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from fitune.adapters.reference import as_reference
from fitune.config.sections import Settings
from fitune.console import log, warn
from fitune.data.rows import PromptRow, TokenRow
from fitune.evaluation.generation import Sampling
from fitune.models.load_base import LoadedBase
from fitune.rewards.mix import Mix, Sample, read_mix
from fitune.runs import manifest as manifests
from fitune.runs.run_folder import RunFolder
from fitune.trainers.callbacks import StopOnInterrupt
from fitune.trainers.online_rl import OnlineRLTrainer, Rollout
from fitune.trainers.rl.reward_eval import RewardEval
from fitune.trainers.rl.reward_model import load_reward_model
from fitune.training.components import adapt_with_reference, bind_callbacks, lay_out, listeners
from fitune.training.setup import RunSetup

ANSWERS = {"ppo": 4, "grpo": 8}
PASSES = {"ppo": 4, "grpo": 1}
KL_COEFFICIENTS = {"ppo": 0.05, "grpo": 0.04}
LEARNING_RATES = {"lora": 1e-4}
METRICS = ("reward", "exact_match", "word_accuracy", "chrf")


def adapt_policy(settings: Settings, base: LoadedBase) -> Any:
    """The policy's adapter, fresh or where another run left it; then its start stays beside it as the reference."""
    model = adapt_with_reference(settings, base)
    without_dropout(model)
    return model


def make_trainer(
    kind: type[OnlineRLTrainer],
    options: Any,
    settings: Settings,
    run: RunFolder,
    setup: RunSetup,
    base: LoadedBase,
    model: Any,
    arguments: TrainingArguments,
    interrupt: StopOnInterrupt,
) -> OnlineRLTrainer:
    """The trainer of a method, with its rewards, its reference and everything that listens to it."""
    rl, how, prompts = settings.rl, rollout_of(settings), setup.data.train
    callbacks = listeners(settings, run, setup, interrupt)
    mode = lay_out(settings, setup, model, arguments, [trial_row(row) for row in prompts]).mode
    dtype = torch.bfloat16 if arguments.bf16 else torch.float16
    autocast = partial(torch.autocast, setup.hardware.device, dtype=dtype, enabled=arguments.bf16 or arguments.fp16)

    def open_run(name: str) -> Any:
        return load_reward_model(model, name, base.template, settings.run.folder, mode, rl.rows_at_once, autocast)

    mix = read_mix(rl.rewards, rl.reward_seconds, open_run)
    mix.try_out([trial_sample(row) for row in prompts[:4]])
    tell(settings, how, mix)
    questions = setup.data.test[: settings.eval.samples]
    examiner = RewardEval(
        setup.renderer,
        questions,
        mix,
        settings.eval.max_new_tokens,
        rl.rows_at_once,
        rl.endless_reward,
        run.log_samples,
    )
    trainer = kind(
        model,
        arguments,
        train_rows=prompts,
        test_rows=questions,
        collate=list,
        extra_metrics=examiner if questions else None,
        keep_checkpoints=settings.run.keep_checkpoints,
        callbacks=callbacks,
        options=options,
        rollout=how,
        mix=mix,
        renderer=setup.renderer,
        reference=partial(as_reference, model),
        mode=mode,
        keep=run.log_samples,
        on_step_down=partial(manifests.append, run.manifest, "memory", "step_downs"),
    )
    bind_callbacks(trainer, callbacks)
    return trainer


def rollout_of(settings: Settings) -> Rollout:
    """How answers are sampled and learnt from."""
    rl, train = settings.rl, settings.train
    return Rollout(
        answers=rl.answers or ANSWERS[settings.method],
        sampling=Sampling(rl.max_new_tokens, rl.temperature, rl.top_p),
        rows_at_once=rl.rows_at_once,
        endless_reward=rl.endless_reward,
        passes=rl.passes or PASSES[settings.method],
        minibatches=rl.minibatches,
        part_prompts=min(train.micro_batch_size or train.batch_size, -(-train.batch_size // rl.minibatches)),
        loss_over=rl.loss_over,
        keep_samples=rl.keep_samples,
    )


def kl_coef_of(settings: Settings) -> float:
    """The price of the distance from the reference."""
    asked = settings.rl.kl_coef
    return KL_COEFFICIENTS[settings.method] if asked is None else asked


def tell(settings: Settings, rollout: Rollout, mix: Mix) -> None:
    """Say what a step is."""
    count = settings.train.batch_size * rollout.answers
    rewards = ", ".join(part.name if part.weight == 1 else f"{part.weight:g}*{part.name}" for part in mix.parts)
    log(
        f"a step: {settings.train.batch_size} prompts with {rollout.answers} answers each ({count} in all), "
        f"{rollout.passes} passes of {rollout.minibatches} updates; rewarded: {rewards}; kl_coef {kl_coef_of(settings):g}"
    )


def without_dropout(model: nn.Module) -> int:
    """Switch every dropout off, since a policy that differs from itself by chance has no ratio of 1; returns how many
    were on."""
    dropouts = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p > 0]
    for module in dropouts:
        module.p = 0.0
    if dropouts:
        warn(f"{len(dropouts)} dropouts are switched off: with them the policy would differ from itself by chance")
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
