"""Settings → what the plan is asked. The reference is what run.py does with the same settings."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from fitune.config.fields import all_fields
from fitune.config.sections import Settings
from fitune.data.packing.largest_pass import LargestPass
from fitune.data.token_rows import PairRow, PromptRow, TokenRow
from fitune.ops.optimizers import OPTIMIZERS
from fitune.planning.scenario import Scenario
from fitune.training.plan_scenario import NEVER, packs_rows, row_sizes, rows_of_length, scenario_of

# Settings that no memory depends on, and why.
NO_MEMORY = {
    "method": "tested below; sft and lm differ in their labels, which the rows tell, and in whether answers are generated",
    "reward": "factors",
    "dpo": "factors; a live reference is asked before the policy's pass, and its states are gone by then",
    "orpo": "factors; the prompts' labels (sft_on: all) pass through the same chunks as the answers'",
    "simpo": "factors",
    "kto": "factors",
    "rl": "tested below; the others are factors, times and words",
    "model.name": "the config is the plan's other argument",
    "model.revision": "likewise",
    "model.merge": "before the first step; one layer's sum at a time",
    "model.device": "the card is the plan's third argument",
    "model.chat_template": "new_tokens tells what a template adds",
    "model.trust_remote_code": "no weights",
    "model.allow_unused_weights": "what is loaded, not how much",
    "model.allow_pickled": "how weights are read, not how many",
    "export": "after the run, on the CPU",
    "parallel.strategy": "a rank's share is asked for with `fitune plan --gpus`",
    "data": "largest_pass and label_share tell what the rows need",
    "lora.continue_from": "its options count, as test_continue.py shows",
    "lora.alpha": "a factor",
    "lora.rslora": "a factor",
    "lora.init": "values; PiSSA's decomposition happens before the first step and is not planned",
    "train.epochs": "steps, not their size",
    "train.max_steps": "likewise",
    "train.learning_rate": "a factor",
    "train.lr_scheduler": "a factor",
    "train.warmup_ratio": "a factor",
    "train.weight_decay": "decoupled: in place",
    "train.seed": "values",
    "eval.every_steps": "when, not how much",
    "eval.best_metric": "likewise",
    "eval.patience": "likewise",
    "run": "files",
    "fit": "whether a plan is made",
    "memory": "how the plan is used, not what is planned",
}
# These matter with a quantization only.
QUANTIZATION = {"model.quantization", "model.double_quant", "model.unquantized"}
OTHER: dict[str, Any] = {
    "model.precision": "fp32",
    "model.attention": "eager",
    "lora.rank": 4,
    "lora.dropout": 0.1,
    "lora.targets": ["q_proj"],
    "lora.bias": "all",
    "lora.dora": True,
    "lora.modules_to_save": ["lm_head"],
    "lora.train_norms": True,
    "train.tuning": "full",
    "train.batch_size": 16,
    "train.micro_batch_size": 2,
    "train.max_grad_norm": None,
    "train.optimizer": "adamw_8bit",
    "train.gradient_checkpointing": True,
    "train.tiled_mlp": True,
    "train.activation_offloading": True,
    "eval.samples": 0,
    "eval.max_new_tokens": 7,
}


def settings_with(**dotted: Any) -> Settings:
    values: dict[str, Any] = {}
    for key, value in dotted.items():
        section, _, name = key.partition(".")
        if name:
            values.setdefault(section, {})[name] = value
        else:
            values[section] = value
    return Settings(**values)


def asked(settings: Settings, packed: bool = False, **more: Any) -> Scenario:
    return scenario_of(settings, longest_tokens=100, label_share=0.5, pack_tokens=300 if packed else None, **more)


@pytest.mark.parametrize("key", [key for key in OTHER if key in all_fields()])
def test_a_setting_that_memory_depends_on_changes_the_question(key: str) -> None:
    assert asked(settings_with(**{key: OTHER[key]})) != asked(Settings())


def test_every_setting_is_reached_or_has_its_reason() -> None:
    reached = {*OTHER, *QUANTIZATION}
    left = {key for key in all_fields() if key not in reached and key not in NO_MEMORY}
    assert {key for key in left if key.partition(".")[0] not in NO_MEMORY} == set()


def test_every_part_of_a_scenario_is_reached_or_has_its_reason() -> None:
    many = settings_with(**{key: OTHER[key] for key in OTHER if key in all_fields() and key != "train.tuning"})
    questions = [
        asked(many, new_tokens=2),
        asked(Settings(), packed=True),
        asked(settings_with(**{"train.tuning": "full"})),
        asked(Settings(), fast_bf16=False),
        asked(settings_with(method="dpo")),
    ]
    plain = Scenario()
    names = {part.name for part in fields(Scenario)}
    reached = {name for name in names for one in questions if getattr(one, name) != getattr(plain, name)}
    assert names == reached | NEVER.keys() | {"compute", "double_quant"}


def test_defaults_on_a_card() -> None:
    assert asked(Settings(), packed=True) == Scenario(
        weights="bf16", tuning="lora", rank=16, optimizer="adamw", autocast="bf16", attention="flash_attention_2",
        rows="packed", batch=1, seq_len=300, label_share=0.5, accumulation=1, save=True, eval_batch=1,
        generate_batch=8, prompt_tokens=100, new_answer_tokens=128,
    )  # fmt: skip


def test_padded_rows_in_micro_batches() -> None:
    one = asked(settings_with(**{"train.batch_size": 8, "train.micro_batch_size": 2, "data.packing": "off"}))
    assert (one.rows, one.batch, one.seq_len, one.accumulation, one.eval_batch) == ("padded", 2, 100, 4, 2)
    assert one.generate_batch == 8  # answers are not split into micro-batches


def test_full_fine_tuning_holds_fp32_masters_under_autocast() -> None:
    one = asked(settings_with(**{"train.tuning": "full"}))
    assert (one.weights, one.autocast, one.trained_dtype) == ("fp32", "bf16", "fp32")


def test_a_card_before_ampere_takes_fp16_and_fp32_takes_no_autocast() -> None:
    old = asked(Settings(), fast_bf16=False)
    assert (old.weights, old.autocast) == ("fp16", "fp16")
    plain = asked(settings_with(**{"model.precision": "fp32"}))
    assert (plain.weights, plain.autocast) == ("fp32", "none")


def test_nothing_held_out_means_no_evaluation() -> None:
    one = asked(settings_with(**{"data.eval_share": 0.0}))
    assert (one.eval_batch, one.generate_batch) == (0, 0)
    assert asked(settings_with(method="lm")).generate_batch == 0


@pytest.mark.parametrize(("method", "loss"), [("reward", "rewards"), ("dpo", "pairs")])
def test_a_pair_is_two_rows_of_a_pass(method: str, loss: str) -> None:
    padded = asked(settings_with(**{"method": method, "train.batch_size": 4}))
    assert (padded.loss, padded.batch, padded.eval_batch) == (loss, 8, 8)
    assert bool(padded.generate_batch) == (method == "dpo")
    packed = asked(settings_with(method=method), packed=True)
    assert (packed.loss, packed.batch, packed.seq_len) == (loss, 1, 300)


def test_a_pair_in_a_pack_has_its_prompt_once() -> None:
    sides = [TokenRow((1, 2, 3, end, 9), (False, False, False, True, True), 1) for end in (4, 5)]
    pairs = [PairRow(sides[0], sides[1], 1)]
    assert row_sizes(settings_with(method="dpo"), pairs) == ((7, 4),)
    assert row_sizes(settings_with(**{"method": "dpo", "data.packing": "off"}), pairs) == ((5, 2), (5, 2))


@pytest.mark.parametrize(("method", "answers"), [("ppo", 4), ("grpo", 8)])
def test_the_answers_to_a_prompt_share_it_in_a_pack_and_are_sampled_at_once(method: str, answers: int) -> None:
    changed = {"method": method, "rl.rewards": ["exact"], "rl.max_new_tokens": 10, "train.batch_size": 2}
    prompts = [PromptRow((1, 2, 3), (), None, {}, 1)]
    assert row_sizes(settings_with(**changed), prompts) == ((3 + answers * 10, answers * 10),)
    one = scenario_of(settings_with(**changed), **vars(rows_of_length(settings_with(**changed), 13)))
    assert (one.loss, one.rows, one.batch, one.seq_len) == ("pairs", "packed", 1, 2 * (3 + answers * 10))
    assert (one.generate_batch, one.prompt_tokens, one.new_answer_tokens) == (2 * answers, 3, 10)
    padded = settings_with(**{**changed, "data.packing": "off", "rl.num_generations": 3, "rl.generation_batch_size": 5})
    assert row_sizes(padded, prompts) == ((13, 10),) * 3
    one = scenario_of(padded, **vars(rows_of_length(padded, 13)))
    assert (one.rows, one.batch, one.seq_len, one.eval_batch) == ("padded", 6, 13, 6)
    assert (one.generate_batch, one.prompt_tokens, one.new_answer_tokens) == (5, 3, 10)


def test_optimizers_are_the_words_of_training() -> None:
    assert set(OPTIMIZERS) == set(all_fields()["train.optimizer"].choices)
    for name in OPTIMIZERS:
        assert asked(settings_with(**{"train.optimizer": name})).optimizer == name


def test_rows_of_one_length_make_one_pack_unless_rows_are_padded() -> None:
    settings = settings_with(**{"train.batch_size": 8, "train.micro_batch_size": 4})
    assert rows_of_length(settings, 512, 0.25) == LargestPass(512, 0.25, 2048, 2048)
    for off in ({"data.packing": "off"}, {"model.attention": "flash_attention_2"}):
        assert not packs_rows(settings_with(**off))
        assert rows_of_length(settings_with(**off), 512).pack_tokens is None
