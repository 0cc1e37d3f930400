"""Published peaks and the scenario that each row is read as: what a row states, and what we assume where it is silent.

In: the CSV files beside this one. Out: `Row`s for compare.py, and `ASSUMED`, the assumptions in words.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.planning.scenario import Scenario

HERE = Path(__file__).resolve().parent
ATTENTION = {"eager_mb": "eager", "sdpa_mb": "sdpa", "fa2_mb": "flash_attention_2"}
LORA_DEFAULTS = {"opt-350m": ("q_proj", "v_proj"), "falcon-7b": ("query_key_value",)}


ASSUMED = {
    "OPT-350M 16-bit": """
Peak of the whole run, one row of 2,000 tokens, weights, gradients and states in fp16. Read out of the rows themselves:

- Full fine-tuning with Adam and no accumulation is five times the parameters (weights, gradients, two states, and
  foreach's square roots of the second), plus the logits in 16 bits, and without checkpointing plus the keys and values
  of every layer: the loop still held the model's outputs, with their cache, when the optimizer stepped, and took one
  step. With accumulation it ended before an optimizer step. All rows agree with this.
- 8-bit Adam: the rows equal those without an optimizer step, so its states are not in torch's allocator. Assumed: the
  paged kind, whose states are managed memory.
- LoRA: rank and targets are not stated. Assumed: PEFT's defaults, rank 8 on q_proj and v_proj, and dropout 0.05;
  PEFT keeps the adapters of 16-bit models in fp32.
""",
    "OPT-350M 8-bit": """
LLM.int8 weights and LoRA, whose rank and targets are not stated. Assumed, as above: rank 8 on q_proj and v_proj, dropout
0.05; PEFT's prepare_model_for_kbit_training. With checkpointing, from 500 to 2,000 tokens, mixed precision saves
2.0 B a logit: the loop keeps the 16-bit logits as they are (plain torch.autocast, not accelerate's, which lifts outputs
to fp32).
""",
    "Falcon-7B 8-bit": """
As OPT-350M in 8 bits, with PEFT's default target for Falcon, query_key_value. The rows of 2,000 tokens without
checkpointing ran out of memory. The card is not named. The eager cell of OPT-350M in 8 bits reached 20.5 GB in torch's
allocator, and FlashAttention-2 needs Ampere or later: a card of 24 GB is the smallest that holds all cells which ran.
"above 24 GB" is said of a reserved peak beyond the 23.6 GB (21.98 GiB) of an A10G, the tightest such card. LLM.int8
results are copied here, as bitsandbytes did until late 2024: without it Falcon's in-place sum over them fails.
""",
    "RTX 4080": """
Qwen2.5, gradient checkpointing unless said. Between two lengths a token of the NF4 rows costs 16 B a logit (fp32 logits,
their log-softmax and two gradients) and 4 B a hidden value and layer: embeddings and norms were lifted to fp32
(prepare_model_for_kbit_training) and no autocast was on. With bf16 weights it is 14 B a logit: 16-bit logits, held by the
loop, then the same three in fp32. What is left over grows as fp32 adapters of rank 16 on q_proj and v_proj with two fp32
states. Peaks count from the process's beginning.
""",
}
# Smallest memory that a card of a class leaves to a process, bytes, rising: RTX 4080; A10G, the tightest with 24 GB
# (ECC inside); A100 40GB. src/fitune/plan/gpus.csv.
CARDS = {"16 GB": 15.69 * 2**30, "24 GB": 21.98 * 2**30, "40 GB": 39.38 * 2**30}


@dataclass(frozen=True)
class Row:
    """A measured peak and its question."""

    table: str
    label: str
    model: str
    scenario: Scenario
    capability: tuple[int, int]
    allocated_bytes: float | None
    """None: the card ran out of memory."""
    reserved_bytes: float | None = None
    kind: str = "allocated"
    """Rows whose errors belong together: "full fine-tuning" states all its settings, others rest on assumptions."""


def lines(name: str) -> list[dict[str, str]]:
    """Rows of a CSV file, comments left out."""
    text = (HERE / "published" / name).read_text().splitlines()
    return list(csv.DictReader(line for line in text if not line.startswith("#")))


def config_of(model: str) -> dict[str, Any]:
    """The config of a model's name."""
    return json.loads((HERE / "configs" / f"{model}.json").read_text())


def course_16bit() -> list[Row]:
    """OPT-350M, weights, gradients and states in fp16, 2,000 tokens."""
    rows = []
    for line in lines("opt350m_16bit_seq2000.csv"):
        full = line["lora"] == "no"
        paged = line["optimizer"] == "adam8bit"
        for column, attention in ATTENTION.items():
            scenario = Scenario(
                weights="fp16",
                trained_dtype="same" if full else "fp32",
                autocast="none",
                loss="logits",
                steps=1,
                seq_len=int(line["seq_len"]),
                use_cache=True,
                keep_outputs=True,
                attention=attention,
                gradient_checkpointing=line["grad_checkpointing"] == "yes",
                reentrant=True,
                tuning="full" if full else "lora",
                rank=8,
                lora_dropout=0.05,
                targets=LORA_DEFAULTS["opt-350m"],
                optimizer="paged_adamw_8bit" if paged else "adamw_foreach",
                max_grad_norm=None,
                optimizer_step=line["grad_accumulation"] == "no",
            )
            label = (
                f"{'full' if full else 'LoRA'}, {line['optimizer']}, accumulation {line['grad_accumulation']}, "
                f"checkpointing {line['grad_checkpointing']}, {attention}"
            )
            kind = "LoRA" if not full else "full, 8-bit Adam" if paged else "full fine-tuning"
            rows.append(
                Row("OPT-350M 16-bit", label, "opt-350m", scenario, (8, 0), float(line[column]) * 1e6, kind=kind)
            )
    return rows


def course_8bit(name: str, model: str, table: str) -> list[Row]:
    """LLM.int8 weights and LoRA."""
    rows = []
    for line in lines(name):
        for column, attention in ATTENTION.items():
            if not line[column]:
                continue
            mixed = line["mixed_precision"] == "yes"
            checkpointing = line["grad_checkpointing"] == "yes"
            scenario = Scenario(
                weights="int8",
                compute="fp16",
                kbit_preparation=True,
                autocast="fp16" if mixed else "none",
                lift_outputs=False,
                loss="logits",
                steps=1,
                seq_len=int(line["seq_len"]),
                use_cache=True,
                keep_outputs=True,
                attention=attention,
                gradient_checkpointing=checkpointing,
                reentrant=True,
                rank=8,
                lora_dropout=0.05,
                targets=LORA_DEFAULTS[model],
                optimizer="paged_adamw_8bit",
                max_grad_norm=None,
            )
            label = (
                f"{line['seq_len']} tokens, checkpointing {line['grad_checkpointing']}, "
                f"mixed {line['mixed_precision']}, {attention}"
            )
            peak = None if line[column] == "OOM" else float(line[column]) * 1e6
            rows.append(Row(table, label, model, scenario, (8, 0), peak, kind="LoRA"))
    return rows


def rtx_4080() -> list[Row]:
    """Qwen2.5 with LoRA and QLoRA on an RTX 4080."""
    rows = []
    for line in lines("rtx4080_qwen.csv"):
        scenario = Scenario(
            **RTX,
            weights="nf4" if "nf4" in line["weights"] else "bf16",
            kbit_preparation="nf4" in line["weights"],
            seq_len=int(line["seq_len"]),
            batch=int(line["batch"]),
            gradient_checkpointing=line["grad_checkpointing"] == "yes",
        )
        label = (
            f"{line['model'].split('/')[1]}, {line['weights']}, {line['seq_len']} × {line['batch']}, "
            f"checkpointing {line['grad_checkpointing']}"
        )
        rows.append(
            Row(
                "RTX 4080",
                label,
                line["model"].split("/")[1].lower(),
                scenario,
                (8, 9),
                float(line["allocated_gib"]) * 2**30,
                float(line["reserved_gib"]) * 2**30,
            )
        )
    return rows


RTX: dict[str, Any] = {
    "loss": "logits",
    "autocast": "none",
    "rank": 16,
    "targets": ("q_proj", "v_proj"),
    "lora_dropout": 0.05,
    "keep_outputs": True,
}


def published() -> list[Row]:
    """Every row of every table."""
    return [
        *course_16bit(),
        *course_8bit("opt350m_8bit.csv", "opt-350m", "OPT-350M 8-bit"),
        *course_8bit("falcon7b_8bit.csv", "falcon-7b", "Falcon-7B 8-bit"),
        *rtx_4080(),
    ]
