"""sft: the facts of supervised fine-tuning."""

from __future__ import annotations

from fitune.methods.method import Method

SFT = Method(
    name="sft",
    help="supervised fine-tuning on prompts and responses, with the loss on the responses",
    trainer="fitune.methods.sft.trainer",
    reads="rows",
    learning_rates={"lora": 2e-4, "full": 2e-5},
    traced_loss="labels",
)
