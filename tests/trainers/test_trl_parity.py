"""The same rows trained by TRL's SFTTrainer: the same loss, step by step."""

from __future__ import annotations

import pytest
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from fitune.trainers.sampler import epoch_order


def tiny_tokenizer():
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"w{index}": index for index in range(3, 64)}}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="</s>"
    )


def trl_losses(folder, model, rows, micro, accumulation, epochs):
    """TRL on the same rows, already in the order of our epochs."""
    ordered = [rows[index] for epoch in range(epochs) for index in epoch_order(len(rows), seed=1, epoch=epoch)]
    labels = [[t if on else -100 for t, on in zip(row.input_ids, row.trained, strict=True)] for row in ordered]
    dataset = Dataset.from_dict({"input_ids": [list(row.input_ids) for row in ordered], "labels": labels})
    arguments = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=micro, gradient_accumulation_steps=accumulation,
        num_train_epochs=1, learning_rate=1e-2, lr_scheduler_type="cosine",
        warmup_steps=1, optim="adamw_torch_fused", max_grad_norm=1.0, seed=1, bf16=False, use_cpu=True,
        logging_steps=1, report_to="none", train_sampling_strategy="sequential", save_strategy="no",
        activation_checkpointing=False, disable_tqdm=True, max_length=None,
    )  # fmt: skip
    trainer = SFTTrainer(model, arguments, train_dataset=dataset, processing_class=tiny_tokenizer())
    trainer.train()
    return [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("micro", [4, 2])
def test_losses_equal_those_of_trls_sft_trainer(tmp_path, tiny, micro):
    """fp32, same LoRA start, same batches of rows of different length, two epochs."""
    rows = tiny.make_rows(12)
    ours = tiny.trainer(tmp_path / "ours", tiny.llama(), rows, micro_batch_size=micro, epochs=2)
    ours.train()
    theirs = trl_losses(tmp_path / "trl", tiny.llama(), rows, micro, 4 // micro, epochs=2)
    logged = [row for row in ours.logged if row["kind"] == "train"]
    assert len(logged) == len(theirs) == 6
    assert [row["loss"] for row in logged] == pytest.approx([loss for loss, _ in theirs], rel=1e-5)
    assert [row["grad_norm"] for row in logged] == pytest.approx([norm for _, norm in theirs], rel=1e-4)
