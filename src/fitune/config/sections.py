"""Settings: the one source of truth for the YAML files, the command line, the JSON schema and the docs.

In: a YAML file of differences from the defaults, dotted command-line values, or keyword arguments.
Out: one frozen `Settings` object, or one `SettingsError` that lists every fault.
Knows nothing of torch, models or data: values that depend on them stay "auto" or null here, and the room
that decides them prints what it chose and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, create_model

from fitune.config.choices import one_of
from fitune.data.read.forms import DATA_FORMS
from fitune.data.read.mixture import join_names
from fitune.exporting.forms import EXPORT_FORMS
from fitune.exporting.gguf.gguf_types import GGUF_TYPES
from fitune.methods.method import Method
from fitune.methods.registry import METHODS
from fitune.models.quantization import QUANTIZATIONS, doubled
from fitune.ops.optimizers import OPTIMIZERS
from fitune.section import PositiveInt, Section, Share


def rates_in_words(methods: Mapping[str, Method]) -> str:
    """``2e-4 (sft, lm) with LoRA, 2e-5 (sft, lm) with full fine-tuning``: the learning rates that methods bring."""
    told = []
    for tuning, words in (("lora", "LoRA"), ("full", "full fine-tuning")):
        names: dict[float, list[str]] = {}
        for method in methods.values():
            if tuning in method.learning_rates:
                names.setdefault(method.learning_rates[tuning], []).append(method.name)
        rates = ", ".join(f"{rate:.0e}".replace("e-0", "e-") + f" ({', '.join(some)})" for rate, some in names.items())
        told.append(f"{rates} with {words}")
    return ", ".join(told)


def told(registry: Mapping[str, Any]) -> str:
    """``adamw: AdamW, two fp32 states. sgd: …``: what each name of a registry is."""
    return " ".join(f"{name}: {one.help}." for name, one in registry.items())


def every_metric(methods: Mapping[str, Method]) -> tuple[str, ...]:
    """What any method measures."""
    return tuple(dict.fromkeys(metric for method in methods.values() for metric in method.metrics))


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
    quantization: Annotated[str, one_of(["none"], QUANTIZATIONS)] = Field(
        default="none",
        description="Store the base's linear layers in few bits, frozen under the adapters; arithmetic is done in "
        f"`precision`. {told(QUANTIZATIONS)}",
    )
    double_quant: bool = Field(
        default=False,
        description=f"With {doubled()}: store the scales of the blocks in 8 bits too, 0.37 bits less a weight.",
    )
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


Sources = Annotated[str, BeforeValidator(join_names, json_schema_input_type=str | list[str])]


class DataSettings(Section):
    """Which rows to train on, and on which of their tokens."""

    train: Sources = "demo:pig-latin"
    """A file (.jsonl .json .csv .tsv .parquet .arrow .txt, also compressed), a folder, `hub:NAME`, or the built-in demo
    task; several with commas between them or as a list, each with a weight if wanted: `[a.jsonl*2, b.parquet]`."""
    eval: Sources | None = None
    """Rows held out for evaluation, likewise; null sets `eval_share` of the training rows aside."""
    eval_share: Share = 0.05
    """Share of the training rows set aside when `eval` is null; 0 trains without evaluation."""
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
    thinking: Literal["auto", "train", "mask", "drop"] = "auto"
    """Reasoning in answers (`<think>…</think>`, or `reasoning_content`). train: it is trained; mask: it is shown and not
    trained; drop: it is left out. auto trains it. Rows without any are trained as the model is asked not to think."""
    system_as_user: bool = False
    """Put the system prompt at the head of the first user message, for templates without a system role; in chat too."""
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
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description=f"Peak learning rate; null takes {rates_in_words(METHODS)}."
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate over the run."""
    warmup_ratio: Share = 0.03
    """Share of the steps in which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient's norm; null does not."""
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = Field(default="adamw", description=told(OPTIMIZERS))
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed of initial weights, dropout and row order."""

    @property
    def micro_rows(self) -> int:
        """Rows of a forward pass."""
        return self.micro_batch_size or self.batch_size


class EvalSettings(Section):
    """What is measured on the held-out rows, and when."""

    every_steps: PositiveInt | None = None
    """Evaluate each so many steps; null at the end of each epoch."""
    samples: Annotated[int, Field(ge=0)] = 20
    """Held-out rows answered by generation, before, during and after training; 0 measures the loss only."""
    max_new_tokens: PositiveInt = 128
    """Longest generated answer in tokens."""
    best_metric: Annotated[str, one_of(every_metric(METHODS))] = "loss"
    """Metric that picks the best checkpoint and decides early stopping; a method without a loss on held-out rows
    takes its first metric instead, such as the reward."""
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


class TrainedAs(Section):
    """The settings that stand before the methods' own sections."""

    method: Annotated[str, one_of(METHODS)] = Field(default="sft", description=told(METHODS))
    fit: Literal["auto", "off"] = "auto"
    """auto: on a GPU, or with a memory.budget, the fastest way of training that fits is chosen before the weights are
    loaded; what was set stays as it was set. off: train as asked, nothing is planned."""
    model: ModelSettings = ModelSettings()
    data: DataSettings = DataSettings()
    lora: LoraSettings = LoraSettings()
    train: TrainSettings = TrainSettings()


OWN_SECTIONS: dict[str, type[Section]] = {
    method.section: method.settings for method in METHODS.values() if method.section and method.settings
}
"""The sections that methods bring, each beside its method (`fitune.methods`)."""
_FIELDS: dict[str, Any] = {name: (kind, kind()) for name, kind in OWN_SECTIONS.items()}
# A type checker cannot see fields that a registry makes; who reads a method's section gets it from `Settings.own`.
_WithOwnSections = create_model("_WithOwnSections", __base__=TrainedAs, **_FIELDS)


class Settings(_WithOwnSections):
    """A run. A YAML file holds the differences from these defaults."""

    eval: EvalSettings = EvalSettings()
    memory: MemorySettings = MemorySettings()
    run: RunSettings = RunSettings()
    export: ExportSettings = ExportSettings()
    trainer: dict[str, Any] = {}
    """Any other field of `transformers.TrainingArguments`, by its own name."""

    @property
    def own(self) -> Section | None:
        """The section of the run's method, where it has one."""
        name = METHODS[self.method].section
        return getattr(self, name) if name else None
