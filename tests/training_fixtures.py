"""What the tests of this room share: rows without a tokenizer, a tiny Llama with LoRA, a trainer over both."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from fitune.config.sections import Settings
from fitune.data.render.chat_format import ChatFormat
from fitune.data.token_rows import PromptRow, TokenRow
from fitune.evaluation.generation import Sampling
from fitune.methods.ppo.trainer import PpoTrainer
from fitune.models.heads import put_head
from fitune.ops.tree_attention import use_tree_attention
from fitune.rewards.mix import Mix, Part
from fitune.trainers.arguments import schedule_of, training_arguments
from fitune.trainers.base import FituneTrainer
from fitune.trainers.callbacks import BestKept, ProgressLine, RunLog
from fitune.trainers.online_rl import Rollout


def make_rows(count: int, seed: int = 0, longest: int = 12) -> list[TokenRow]:
    """Rows of different length; the first two tokens are the prompt."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        length = int(torch.randint(4, longest + 1, (1,), generator=generator))
        ids = torch.randint(3, 60, (length,), generator=generator).tolist()
        rows.append(TokenRow(tuple(ids), (False, False, *[True] * (length - 2)), number))
    return rows


def collate(rows: list[TokenRow]) -> dict[str, torch.Tensor]:
    """Right-padded with id 0."""
    longest = max(len(row.input_ids) for row in rows)
    ids_BS = torch.zeros(len(rows), longest, dtype=torch.long)
    mask_BS, labels_BS = torch.zeros_like(ids_BS), torch.full_like(ids_BS, -100)
    for index, row in enumerate(rows):
        length, ids_S = len(row.input_ids), torch.tensor(row.input_ids)
        ids_BS[index, :length], mask_BS[index, :length] = ids_S, 1
        labels_BS[index, :length] = ids_S.masked_fill(~torch.tensor(row.trained), -100)
    return {"input_ids": ids_BS, "attention_mask": mask_BS, "labels": labels_BS}


def tiny_llama(dtype: torch.dtype = torch.float32, lora: bool = True, dropout: float = 0.0, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype)
    if not lora:
        return model
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules="all-linear"))


def tiny_trainer(
    folder: Any, model: Any, rows: list[TokenRow], eval_rows: list[TokenRow] = (), **changed: Any
) -> FituneTrainer:  # type: ignore[assignment]
    """A trainer whose log rows are collected in ``trainer.logged``."""
    batch, micro = changed.pop("batch_size", 4), changed.pop("micro_batch_size", None)
    epochs, max_steps = changed.pop("epochs", 1.0), changed.pop("max_steps", None)
    every, saves = changed.pop("every_steps", None), changed.pop("checkpoint_steps", None)
    keep, patience = changed.pop("keep_checkpoints", 2), changed.pop("patience", None)
    extra_metrics, best = changed.pop("examine", None), changed.get("best_metric", "loss")
    values = {
        "epochs": epochs, "max_steps": max_steps, "learning_rate": 1e-2, "lr_scheduler": "cosine",
        "optimizer": "adamw", "weight_decay": 0.0, "max_grad_norm": 1.0, "gradient_checkpointing": False, "seed": 1,
        "mixed_precision": "fp32", "device": "cpu", "evaluates": bool(eval_rows), "best_metric": "loss",
        "log_steps": 1, "report_to": [], "run_name": "test", "overrides": {},
    }  # fmt: skip
    schedule = schedule_of(len(rows), batch, micro or batch, epochs, max_steps, 0.1, every, saves)
    logged: list[dict[str, Any]] = []
    callbacks: list[Any] = [RunLog(logged.append, lambda: 0), ProgressLine(quiet_seconds=1e9)]
    if eval_rows:
        callbacks.append(BestKept(best, higher_is_better=best != "loss", patience=patience))
    trainer = FituneTrainer(
        model, training_arguments(folder, schedule, **{**values, **changed}), rows, list(eval_rows), collate, extra_metrics,
        keep, callbacks,
    )  # fmt: skip
    trainer.logged = logged
    return trainer


def losses(trainer: FituneTrainer) -> list[float]:
    return [row["loss"] for row in trainer.logged if row["kind"] == "train"]


@pytest.fixture(scope="session")
def neox_folder(tiny_gpt_neox: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny GPT-NeoX that this room may write into."""
    return Path(shutil.copytree(tiny_gpt_neox, tmp_path_factory.mktemp("models") / "tiny-neox"))


@pytest.fixture(scope="session")
def backwards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows that ask for a word backwards."""
    path = tmp_path_factory.mktemp("data") / "backwards.jsonl"
    words = ["cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee"]
    rows = [{"prompt": f"say {word}", "completion": word[::-1]} for word in words]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def settings_of(neox_folder: Path, backwards: Path, tmp_path: Path) -> Any:
    """Settings of a short run: dotted names set what differs, ``train__epochs=3``."""

    def make(**changed: Any) -> Settings:
        values: dict[str, Any] = {
            "fit": "off",  # a plan takes a second or two, and only test_fit.py looks at it
            "model": {"name": str(neox_folder), "precision": "fp32", "device": "cpu"},
            "data": {"train": str(backwards), "eval_share": 0.2},
            "train": {"batch_size": 2, "learning_rate": 1e-2},
            "eval": {"samples": 2, "max_new_tokens": 8},
            "run": {"folder": str(tmp_path / "runs"), "name": "one"},
        }
        for key, value in changed.items():
            section, _, name = key.partition("__")
            if name:
                values.setdefault(section, {})[name] = value
            else:
                values[section] = value
        return Settings(**values)

    return make


# The three tokens that the untrained model says most often, in this order: the best arm is the third.
PAYS = (0.0, 0.5, 1.0)
PROMPT = (3, 4, 6)


class Words:
    """A tokenizer whose words are numbers."""

    pad_token_id = 0

    def decode(self, ids: Any, **_: Any) -> str:
        return " ".join(map(str, ids))


RENDERER: Any = SimpleNamespace(tokenizer=Words(), stop_ids=(2,), chat_format=ChatFormat(), special_texts=())


def bandit_trainer(folder: Path, kind: Any, options: Any, **changed: Any) -> Any:
    """A trainer over one prompt; `changed` are steps, rate, seed, and fields of `Rollout`."""
    steps, rate, seed = changed.pop("steps", 30), changed.pop("rate", 2e-2), changed.pop("seed", 1)
    mode, mix = changed.pop("mode", "tree"), changed.pop("mix", None)
    rows, checkpoints = changed.pop("prompts", 4), changed.pop("checkpoint_steps", 1_000)
    how = {
        "num_generations": 16, "sampling": Sampling(1, 1.0), "generation_batch_size": 64, "truncated_reward": None,
        "num_iterations": 2, "minibatches": 1, "part_prompts": rows, "loss_aggregation": "token", "keep_samples": 4, **changed,
    }  # fmt: skip
    torch.manual_seed(seed)
    model = tiny_llama(lora=False)
    with torch.no_grad():
        model.lm_head.weight.mul_(15)  # so that hidden states of this size can tell one token from 63 others
    adapted = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    use_tree_attention(model)
    if kind is PpoTrainer:
        put_head(adapted, offset=True, spread=0.0)
    prompts = [PromptRow(PROMPT, ({"role": "user", "content": "?"},), None, {}, number) for number in range(rows)]
    arguments = training_arguments(
        folder, schedule_of(rows, rows, rows, 1.0, steps, 0.0, None, checkpoints), epochs=1.0, max_steps=steps,
        learning_rate=rate, lr_scheduler="linear", optimizer="adamw", weight_decay=0.0, max_grad_norm=1.0,
        gradient_checkpointing=False, seed=seed, mixed_precision="fp32", device="cpu", evaluates=False,
        best_metric="loss", log_steps=1, report_to=[], run_name="bandit", overrides={},
    )  # fmt: skip
    arms = dict(zip(first_token(adapted).topk(len(PAYS)).indices.tolist(), PAYS, strict=True))

    def pay(answers: list[str], token_ids: list[tuple[int, ...]]) -> list[float]:
        return [arms.get(ids[3], -0.5) for ids in token_ids]  # the prompt has three tokens

    mix = mix or Mix((Part("pay", 1.0, pay, frozenset({"answers", "token_ids"})),))
    kept: list[dict[str, Any]] = []
    trainer = kind(
        adapted, arguments, train_rows=prompts, eval_rows=[], collate=lambda rows: {"prompts": rows},
        rollout=Rollout(**how), mix=mix, renderer=RENDERER, reference=adapted.disable_adapter,
        mode=mode, keep=kept.extend, options=options,
    )  # fmt: skip
    trainer.kept, trainer.arms = kept, arms
    return trainer


def first_token(model: Any) -> torch.Tensor:
    """Probability of each token after the prompt, V."""
    model.eval()
    with torch.no_grad():
        return model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)


@pytest.fixture
def tiny() -> SimpleNamespace:
    """The functions of this file, for tests that cannot import a neighbour."""
    return SimpleNamespace(
        make_rows=make_rows,
        collate=collate,
        llama=tiny_llama,
        trainer=tiny_trainer,
        losses=losses,
        bandit=bandit_trainer,
        first_token=first_token,
    )
