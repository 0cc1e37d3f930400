"""Settings: the one source of truth for the YAML files, the command line, the JSON schema and the docs.

In: a YAML file of differences from the defaults, dotted command-line values, or keyword arguments.
Out: one frozen `Settings` object, or one `SettingsError` that lists every fault.
Knows nothing of torch, models or data: values that depend on them stay "auto" or null here, and the room
that decides them prints what it chose and why.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from fitune.config.choices import one_of
from fitune.data.read.forms import DATA_FORMS
from fitune.exporting.forms import EXPORT_FORMS
from fitune.exporting.gguf.gguf_types import GGUF_TYPES

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen group of settings; unknown keys and values of another type are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelSettings(Section):
    """Which base model, and how it is loaded."""

    name: str = "smollm2-135m-instruct"
    """A built-in name, a hub id (`org/model`), a local folder, or a GGUF file."""
    revision: str | None = None
    """Branch, tag or commit of a hub model; null takes its main branch."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Type of the base weights and of the arithmetic; auto takes bf16 where the hardware multiplies it fast."""
    quantization: Literal["none", "int8", "nf4", "fp4"] = "none"
    """Store the base's linear layers in 8 bits (LLM.int8, arXiv 2208.07339) or 4 (NF4 of QLoRA, arXiv 2305.14314, or FP4),
    frozen under the adapters. Arithmetic is done in `precision`."""
    double_quant: bool = False
    """With nf4 or fp4: store the scales of the blocks in 8 bits too, 0.37 bits less a weight."""
    unquantized: list[str] = []
    """With a quantization: linear layers kept in `precision`, by name endings such as `[down_proj]`. Embeddings, norms and
    the output head always are."""
    merge: list[str] = []
    """Adapters (runs by name or folder, or adapters' folders) merged into the base before training, in this order. A new
    adapter is trained over the result, and keeps copies of them. Not with a quantization."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention kernel; auto takes SDPA."""
    chat_template: str = "auto"
    """auto: the model's own template, or ChatML for a model that has none; chatml; or the path of a Jinja file."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model. Only for authors you trust."""
    allow_pickled: bool = False
    """Load pickled weights (`.bin`, `.pt`) where a model has no safetensors. Only for authors you trust."""


class DataSettings(Section):
    """Which rows to train on, and on which of their tokens."""

    train: str = "demo:pig-latin"
    """A file (.jsonl .json .csv .parquet .txt), `hub:NAME`, or the built-in demo task."""
    test: str | None = None
    """Rows held out for evaluation, likewise; null sets `test_share` of the training rows aside."""
    test_share: Share = 0.05
    """Share of the training rows set aside when `test` is null; 0 trains without evaluation."""
    hub_split: str = "train"
    """Split of a hub data set."""
    form: Annotated[str, one_of(["auto"], DATA_FORMS)] = "auto"
    """How a row is laid out; auto recognises it from the columns."""
    columns: dict[str, str] = {}
    """The form's column → the file's column, for files with other names, for example `{prompt: question}`."""
    system: str | None = None
    """System prompt for rows that bring none."""
    loss_on: Literal["auto", "completion", "assistant", "last_assistant", "response_template", "all"] = "auto"
    """Tokens that are trained. auto: the completion or every assistant turn (sft), all (lm)."""
    response_template: str | None = None
    """With `loss_on: response_template`: train what follows this text."""
    max_length: PositiveInt | None = None
    """Longest row in tokens; null allows the model's context length."""
    too_long: Literal["error", "drop", "cut"] = "error"
    """Rows over `max_length`: refuse to start, leave them out, or cut their end off."""
    packing: Literal["auto", "tree", "rows", "off"] = "auto"
    """Rows of a step without padding. tree: prefixes that rows share are computed once; rows: side by side; off: padded.
    auto takes tree where a check against the model's plain forward passes. The losses are the same."""


class LoraSettings(Section):
    """LoRA adapters, in the terms of the PEFT library (Hu et al. 2021, arXiv 2106.09685)."""

    continue_from: str | None = None
    """Train a saved adapter further: a run (name or folder) or an adapter's folder, over the same base. It keeps its own
    rank, targets and so on; the other settings of this section stay away."""
    rank: PositiveInt = 16
    """Rank r of the update B·A."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Modules to adapt: `all-linear`, or name endings such as `[q_proj, v_proj]`."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases to train in full. Trained biases change the base model even with the adapter off."""
    rslora: bool = False
    """Scale by alpha / √rank instead (rank-stabilised, arXiv 2312.03732)."""
    dora: bool = False
    """Train magnitude and direction apart (DoRA, arXiv 2402.09353)."""
    modules_to_save: list[str] = []
    """Modules trained in full and saved with the adapter."""
    train_norms: bool = False
    """Train the layer norms in full and save them with the adapter."""
    init: Literal["default", "gaussian", "pissa", "loftq", "debug"] = "default"
    """Initial A and B: default (Kaiming A, zero B), gaussian, PiSSA (arXiv 2404.02948), with a quantized base LoftQ, which
    begins with the error of the quantization (arXiv 2310.08659), debug (not an identity)."""


class TrainSettings(Section):
    """How the weights are moved."""

    tuning: Literal["lora", "full"] = "lora"
    """Train adapters, or every weight."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Stop after so many optimizer steps, whatever `epochs` says."""
    batch_size: PositiveInt = 8
    """Rows per optimizer step."""
    micro_batch_size: PositiveInt | None = None
    """Rows per forward pass, a divisor of `batch_size`; null takes the whole batch. The result is the same."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; null takes 2e-4 for LoRA and 2e-5 for full fine-tuning."""
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate over the run."""
    warmup_share: Share = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient's norm; null does not."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "sgd"] = "adamw"
    """Optimizer; the 8-bit ones keep their states in a quarter of the memory."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of initial weights, dropout and row order."""


class RlSettings(Section):
    """Learning from rewards (ppo, grpo): what is rewarded, how answers are sampled, how far the policy may move."""

    rewards: list[str] = []
    """What is rewarded, each with its weight before it: `[pig_latin, 0.2*length:20]`. A word of the library (exact, words,
    chrf, regex:PATTERN, length:WORDS, json, json:KEY+KEY, pig_latin), a function (`package.module.function` or
    `file.py:function`), or a reward run (`run:RUN`)."""
    reward_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Longest that a reward may take for the answers of a step; then the run stops, and can be resumed."""
    answers: PositiveInt | None = None
    """Answers sampled to each of a step's `train.batch_size` prompts; null samples 4 (ppo) or 8 (grpo)."""
    max_new_tokens: PositiveInt = 128
    """Longest sampled answer in tokens."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature; log-probabilities are taken at the same one."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the likeliest tokens that make up this share; below 1 the policy that samples is no longer quite the one
    that is trained."""
    rows_at_once: PositiveInt = 64
    """Answers sampled in one batch; fewer need less memory."""
    endless_reward: float | None = 0.0
    """An answer cut off at `max_new_tokens` earns this at most; null scores it like any other."""
    passes: PositiveInt | None = None
    """Passes over the answers of a step; null makes 4 (ppo) or 1 (grpo)."""
    minibatches: PositiveInt = 1
    """Optimizer updates in each pass."""
    kl_coef: Annotated[float, Field(ge=0)] | None = None
    """Price of the distance from the reference; null takes 0.05 (ppo) or 0.04 (grpo)."""
    kl_target: Annotated[float, Field(gt=0)] | None = None
    """ppo: adapt `kl_coef` so that an answer's KL comes near this (Ziegler et al. 2019, arXiv 1909.08593); null keeps it."""
    clip: Annotated[float, Field(gt=0)] = 0.2
    """How far a token's probability may fall, or rise, in the updates of a step before its gradient stops."""
    clip_high: Annotated[float, Field(gt=0)] | None = None
    """The same for rising alone (DAPO's clip-higher, arXiv 2503.14476, takes 0.28); null takes `clip`."""
    ratio: Literal["token", "answer"] = "token"
    """Clip each token's ratio, or that of the whole answer (GSPO, arXiv 2507.18071)."""
    loss_over: Literal["token", "answer", "constant"] = "token"
    """Mean over all tokens (DAPO), over each answer first (GRPO, arXiv 2402.03300), or over the longest length allowed
    (Dr. GRPO, arXiv 2503.20783)."""
    advantage: Literal["group", "rloo"] = "group"
    """grpo: an answer against its group's mean, or against the mean of the others with the KL paid out of the reward
    (RLOO, arXiv 2402.14740)."""
    scale_rewards: bool = True
    """grpo: divide by the standard deviation of the group's rewards; Dr. GRPO does not."""
    gamma: Share = 1.0
    """ppo: discount of later tokens."""
    lam: Share = 0.95
    """ppo: λ of generalized advantage estimation (arXiv 1506.02438)."""
    value_coef: Annotated[float, Field(ge=0)] = 0.1
    """ppo: weight of the value loss."""
    value_clip: Annotated[float, Field(gt=0)] | None = 0.2
    """ppo: how far a value may move in the updates of a step; null does not clip."""
    keep_samples: Annotated[int, Field(ge=0)] = 4
    """Answers of each step kept in the run folder, half of them the worst and half the best."""


class EvalSettings(Section):
    """What is measured on the held-out rows, and when."""

    every_steps: PositiveInt | None = None
    """Evaluate each so many steps; null at the end of each epoch."""
    samples: Annotated[int, Field(ge=0)] = 20
    """Held-out rows answered by generation, before, during and after training; 0 measures the loss only."""
    max_new_tokens: PositiveInt = 128
    """Longest generated answer in tokens."""
    best_metric: Literal["loss", "exact_match", "word_accuracy", "chrf", "accuracy", "reward"] = "loss"
    """Metric that picks the best checkpoint and decides early stopping; ppo and grpo, which have no loss on held-out rows,
    take the reward instead of it."""
    patience: PositiveInt | None = None
    """Stop when `best_metric` has not improved for so many evaluations; null never stops early."""


class MemorySettings(Section):
    """What memory the run may take, and what may be given up for it (`fit`)."""

    budget: str | None = None
    """Memory that the run may take, for example 16GiB; null takes what is free on the GPU, and sets no limit on a CPU."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of that memory which the plan must leave free: as much as a plan has been seen to miss by."""
    may_change: list[
        Literal[
            "train.micro_batch_size",
            "train.gradient_checkpointing",
            "train.optimizer",
            "train.tuning",
            "model.quantization",
            "data.max_length",
        ]
    ] = []
    """What `fit` may change though it was set: train.tuning takes LoRA instead of full fine-tuning, data.max_length leaves
    the longest rows out."""


class RewardSettings(Section):
    """How a reward model learns (method reward): Bradley and Terry's loss on pairs."""

    center: Annotated[float, Field(ge=0)] = 0.01
    """Weight of (r_chosen + r_rejected)², which keeps rewards around 0 (arXiv 2312.09244); 0 leaves it out."""


class DpoSettings(Section):
    """Preferences without a reward model (method dpo; arXiv 2305.18290)."""

    loss: Literal["sigmoid", "robust", "ipo"] = "sigmoid"
    """sigmoid: the paper's. robust: unbiased when `label_smoothing` of the pairs are judged wrongly (arXiv 2403.00409).
    ipo: squared, per answer token (arXiv 2310.12036)."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How dear it is to leave the reference; for ipo the paper's τ."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """With sigmoid or robust: the share of pairs that are taken for judged wrongly."""
    sft_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the supervised loss on the chosen answers beside it (arXiv 2404.19733 takes 1): keeps their probability
    from falling where the two answers of a pair are much alike."""
    reference: Literal["precomputed", "live"] = "precomputed"
    """precomputed: the reference's log-probabilities are taken once before step one. live: each step asks the reference
    again, with the adapter off (or the earlier run's, frozen). The losses are the same."""


class RunSettings(Section):
    """Where the run lives, and what it leaves there."""

    name: str | None = None
    """Folder of the run below `folder`; null derives it from model, data and time."""
    folder: str = "runs"
    """Folder of all runs."""
    checkpoint_steps: PositiveInt | None = None
    """Save a checkpoint each so many steps; null with each evaluation."""
    keep_checkpoints: PositiveInt = 2
    """Checkpoints kept, the best one always among them."""
    log_steps: PositiveInt = 1
    """Write metrics each so many steps."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Trackers to report to, when installed."""


class ExportSettings(Section):
    """What is made of the result when training ends. What cannot be made is refused before it begins."""

    to: list[Annotated[str, one_of(EXPORT_FORMS)]] = []
    """Copies to write into `export/` of the run's folder, each with a fidelity report; `fitune export` makes more."""
    gguf_type: Annotated[str, one_of(GGUF_TYPES)] = "f16"
    """How gguf and ollama store the weights."""


class Settings(Section):
    """A run. A YAML file holds the differences from these defaults."""

    method: Literal["sft", "lm", "reward", "dpo", "ppo", "grpo"] = "sft"
    """sft: prompts and responses, loss on the responses. lm: next-token prediction on plain text. reward: a reward model
    from pairs of a better and a worse answer. dpo: the preferences of such pairs, without a reward model. ppo,
    grpo: the model's own answers to prompts, rewarded."""
    fit: Literal["auto", "off"] = "auto"
    """auto: on a GPU, or with a memory.budget, the fastest way of training that fits is chosen before the weights are
    loaded; what was set stays as it was set. off: train as asked, nothing is planned."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    lora: LoraSettings = LoraSettings()
    train: TrainSettings = TrainSettings()
    rl: RlSettings = RlSettings()
    eval: EvalSettings = EvalSettings()
    memory: MemorySettings = MemorySettings()
    reward: RewardSettings = RewardSettings()
    dpo: DpoSettings = DpoSettings()
    run: RunSettings = RunSettings()
    export: ExportSettings = ExportSettings()
    trainer: dict[str, Any] = {}
    """Any other field of `transformers.TrainingArguments`, by its own name."""
