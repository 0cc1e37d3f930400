"""What decides the memory of a training step, as plain values: the question that the plan answers.

Imports no torch: a cached answer is found without it.
"""

from __future__ import annotations

import json
from collections import ChainMap
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from fitune.models.quantization import QUANTIZATIONS
from fitune.ops.optimizers import PLANNED

Compute = Literal["fp32", "bf16", "fp16"]

# Types of unquantized weights, and their bytes a value.
PRECISIONS = {"fp32": 4, "bf16": 2, "fp16": 2}
WEIGHTS: Mapping[str, Any] = ChainMap(QUANTIZATIONS, PRECISIONS)  # type: ignore[arg-type]
CHOICES: dict[str, Collection[str]] = {
    "weights": WEIGHTS,
    "compute": PRECISIONS,
    "tuning": ("lora", "full"),
    "bias": ("none", "all", "lora_only"),
    "trained_dtype": ("fp32", "same"),
    "autocast": ("none", "bf16", "fp16"),
    "optimizer": PLANNED,
    "attention": ("eager", "sdpa", "flash_attention_2"),
    "rows": ("full", "padded", "packed"),
    "loss": ("labels", "logits", "rewards", "pairs"),
}  # fmt: skip


@dataclass(frozen=True)
class Scenario:
    """One training step, its evaluation and its checkpoint. The defaults are fitune's own LoRA run on a GPU.

    Raises:
        ValueError: a value outside its choices, a size below 1, or a combination that cannot be trained.
    """

    # ---- the base
    weights: str = "bf16"
    """How the base weights are stored: one of `PRECISIONS` or `QUANTIZATIONS`."""
    double_quant: bool = True
    """Quantize the scales as well, where a quantization can."""
    compute: Compute = "bf16"
    """Type in which quantized weights are multiplied, and of what stays unquantized in a quantized model."""
    kbit_preparation: bool = False
    """PEFT's prepare_model_for_kbit_training: everything left in 16 bits is lifted to fp32."""

    # ---- what is trained
    tuning: Literal["lora", "full"] = "lora"
    rank: int = 16
    targets: tuple[str, ...] | Literal["all-linear"] = "all-linear"
    lora_dropout: float = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    train_norms: bool = False
    dora: bool = False
    modules_to_save: tuple[str, ...] = ()
    new_tokens: int = 0
    """Embedding rows trained beside the adapter (a chat template's new tokens)."""
    frozen_layers: int = 0
    """full: the embeddings and the first so many layers are not trained."""
    trained_dtype: Literal["fp32", "same"] = "fp32"
    """Type of what is trained: fp32 masters, or the type that the base is stored in."""

    # ---- the step
    optimizer: str = "adamw"
    """One of `fitune.ops.optimizers.PLANNED`; adamw is torch's fused one, Trainer's default on CUDA."""
    optimizer_step: bool = True
    """False: a run that ends before its first optimizer step (accumulation longer than the run)."""
    max_grad_norm: float | None = 1.0
    gradient_checkpointing: bool = False
    reentrant: bool = False
    """The older kind of checkpointing, default before transformers 5."""
    tiled_mlp: bool = False
    """Feed-forward blocks and linear layers of the fused layers are computed in tiles along the sequence."""
    activation_offloading: bool = False
    """Inputs of checkpointed layers lie in the host's memory between forward and backward pass; on a card only."""
    accumulation: int = 1
    autocast: Literal["none", "bf16", "fp16"] = "bf16"
    attention: Literal["eager", "sdpa", "flash_attention_2"] = "sdpa"
    loss: Literal["labels", "logits", "rewards", "pairs"] = "labels"
    """labels: logits only where there is a label (fitune). logits: all of them, by the model's own loss (others).
    rewards: a scalar a row and no logits (reward). pairs: log-probabilities of answers, chunk by chunk (dpo)."""

    use_cache: bool = False
    """The forward pass fills a key-value cache (plain loops without checkpointing; fitune never)."""
    keep_outputs: bool = False
    """The loop holds the model's outputs until the next forward pass has ended (plain loops; fitune never)."""
    lift_outputs: bool = True
    """With autocast, 16-bit outputs are lifted to fp32, as accelerate prepares a model (Trainer); a plain loop's are not."""
    steps: int = 2
    """Steps until the peak is read: states exist from the second on."""

    # ---- the rows
    batch: int = 1
    seq_len: int = 1024
    """Length of the longest row; a packed row's whole length."""
    rows: Literal["full", "padded", "packed"] = "full"
    """full: all of one length, no mask. padded: shorter rows beside the longest. packed: many rows in one."""
    label_share: float = 1.0
    """Share of the positions that have a label."""

    # ---- beside the step; 0 leaves a phase out
    eval_batch: int = 0
    generate_batch: int = 0
    prompt_tokens: int = 0
    new_answer_tokens: int = 0
    save: bool = False

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; use one of {', '.join(allowed)}")
        for name in ("batch", "seq_len", "rank", "accumulation", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; use 1 or more")
        for name in (
            "frozen_layers",
            "eval_batch",
            "generate_batch",
            "prompt_tokens",
            "new_answer_tokens",
            "new_tokens",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 or more")
        if not 0 < self.label_share <= 1:
            raise ValueError(f"label_share is {self.label_share}; use a share above 0 and up to 1")
        if not isinstance(self.targets, str):
            object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "modules_to_save", tuple(self.modules_to_save))
        if self.quantized and self.tuning == "full":
            raise ValueError(
                f"weights are {self.weights} and tuning is full: quantized weights cannot be trained; "
                "use tuning lora, or weights bf16"
            )

    @property
    def quantized(self) -> bool:
        """Whether the base is stored in few bits."""
        return self.weights in QUANTIZATIONS

    @property
    def dense_type(self) -> str:
        """Type of the base's unquantized weights: of all of them, or of those that a quantization leaves."""
        return self.compute if self.quantized else self.weights

    def but(self, **changes: object) -> Scenario:
        """The same question with some values changed."""
        return replace(self, **changes)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        values = asdict(self)
        for name in ("targets", "modules_to_save"):
            if not isinstance(values[name], str):
                values[name] = list(values[name])
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Scenario:
        """The scenario that `to_dict` wrote; unknown names are an error."""
        known = {field.name for field in fields(cls)}
        if unknown := sorted(values.keys() - known):
            raise ValueError(f"{unknown[0]} is no part of a scenario; known are {', '.join(sorted(known))}")
        options: dict[str, Any] = dict(values)
        return cls(**options)

    def key(self) -> str:
        """One line that is equal for equal questions."""
        return json.dumps(self.to_dict(), sort_keys=True)
