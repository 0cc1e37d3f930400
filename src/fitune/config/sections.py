"""Settings: the one source of truth for the YAML files, the command line, the JSON schema and the docs.

In: a YAML file of differences from the defaults, dotted command-line values, or keyword arguments.
Out: one frozen `Settings` object, or one `SettingsError` that lists every fault.
Knows nothing of torch, models or data: values that depend on them stay "auto" or null here, and the
package that decides them prints what it chose and why.
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
    """Device to train on; auto uses a GPU if there is one."""
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
    """With quantization: linear layers to keep in `precision`, given as name suffixes such as `[down_proj]`. Embeddings,
    norms and the output head are never quantized."""
    merge: list[str] = []
    """Adapters (run names or folders, or adapter folders) to merge into the base before training, in this order. The new
    adapter is trained on the merged model and keeps copies of them in its folder. Not possible with quantization."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    """Attention implementation; auto uses SDPA."""
    chat_template: str = "auto"
    """auto: the model's own template, or ChatML if it has none. chatml: ChatML. Otherwise the path of a Jinja file."""
    trust_remote_code: bool = False
    """Run Python code shipped with a hub model. Only for authors you trust."""
    allow_pickled: bool = False
    """Load pickled weights (`.bin`, `.pt`) where a model has no safetensors. Only for authors you trust."""
    allow_unused_weights: bool = False
    """Train a model whose files hold tensors that its config.json has no layer for; they are left out."""


Sources = Annotated[str, BeforeValidator(join_names, json_schema_input_type=str | list[str])]


class DataSettings(Section):
    """Which rows to train on, and on which of their tokens."""

    train: Sources = "demo:pig-latin"
    """A file (.jsonl .json .csv .tsv .parquet .arrow .txt, also compressed), a folder, `hub:NAME`, or the built-in demo
    task; several with commas between them or as a list, each with a weight if wanted: `[a.jsonl*2, b.parquet]`."""
    eval: Sources | None = None
    """Rows held out for evaluation, likewise; null sets `eval_share` of the training rows aside."""
    eval_share: Share = 0.05
    """Share of the training rows to hold out when `eval` is null; 0 trains without evaluation."""
    hub_split: str = "train"
    """Split of the hub dataset."""
    form: Annotated[str, one_of(["auto"], DATA_FORMS)] = "auto"
    """Format of a row; auto detects it from the columns."""
    columns: dict[str, str] = {}
    """Maps the form's columns to the file's where their names differ, for example `{prompt: question}`."""
    system: str | None = None
    """System prompt for rows that have none."""
    loss_on: Literal["auto", "completion", "assistant", "last_assistant", "response_template", "all"] = "auto"
    """Tokens that are trained. auto: the completion or every assistant turn (sft), all (lm)."""
    thinking: Literal["auto", "train", "mask", "drop"] = "auto"
    """Reasoning in answers (`<think>…</think>`, or `reasoning_content`). train: it is trained; mask: it is shown and not
    trained; drop: it is left out. auto trains it. Rows without any are trained as the model is asked not to think."""
    system_as_user: bool = False
    """Put the system prompt at the head of the first user message, for templates without a system role; in chat too."""
    split_special_tokens: bool = True
    """Encode the text of a special token that stands in a message (`<|im_end|>` in a question) as plain text, in chat too.
    false makes it the token, for data that relies on it; the template's own are tokens either way."""
    response_template: str | None = None
    """With `loss_on: response_template`: compute the loss on what follows this text."""
    max_length: PositiveInt | None = None
    """Maximum length of a row in tokens; null uses the model's context length."""
    too_long: Literal["error", "drop", "cut"] = "error"
    """What to do with rows over `max_length`: refuse to start, drop them, or truncate them."""
    bad_rows: Literal["error", "drop"] = "error"
    """What to do with rows that cannot be used: refuse to start, or drop them; `data check` and the run's report count and
    name them."""
    packing: Literal["auto", "tree", "rows", "off"] = "auto"
    """Pack the rows of a step instead of padding them. tree: prefixes that rows share are computed once. rows: rows are
    concatenated. off: rows are padded. auto uses tree if its outputs match the model's plain forward pass. The losses are
    the same."""


class LoraSettings(Section):
    """LoRA adapters, in the terms of the PEFT library (Hu et al. 2021, arXiv 2106.09685)."""

    continue_from: str | None = None
    """Continue training a saved adapter of the same base, given as a run (name or folder) or an adapter folder. It keeps
    its own rank, targets and so on, so no other setting of this section may be set."""
    rank: PositiveInt = 16
    """Rank r of the update B·A."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """The update is scaled by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout on the adapter's input."""
    targets: list[str] | Literal["all-linear"] = "all-linear"
    """Modules to adapt: `all-linear`, or name suffixes such as `[q_proj, v_proj]`. In a mixture `all-linear` takes the
    experts too and leaves the router alone; in a list they go by `gate_up_proj` and `down_proj`."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Biases to train. Trained biases change the base model even with the adapter switched off."""
    rslora: bool = False
    """Scale by alpha / √rank instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train magnitude and direction separately (DoRA, arXiv 2402.09353)."""
    modules_to_save: list[str] = []
    """Modules to train in full and save with the adapter."""
    train_norms: bool = False
    """Train the layer norms in full and save them with the adapter."""
    init: Literal["default", "gaussian", "pissa", "loftq", "debug"] = "default"
    """Initialisation of A and B: default (Kaiming A, zero B), gaussian, pissa (arXiv 2404.02948), loftq, which starts from
    the quantization error of a quantized base (arXiv 2310.08659), or debug (a nonzero update)."""


class TrainSettings(Section):
    """How the weights are optimized."""

    tuning: Literal["lora", "full"] = "lora"
    """Train adapters, or every weight."""
    epochs: Annotated[float, Field(gt=0)] = 1.0
    """Passes over the training rows."""
    max_steps: PositiveInt | None = None
    """Stop after this many optimizer steps, regardless of `epochs`."""
    batch_size: PositiveInt = 8
    """Rows per optimizer step."""
    micro_batch_size: PositiveInt | None = None
    """Rows per forward pass, a divisor of `batch_size`; null uses the whole batch. The gradients are the same."""
    learning_rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description=f"Peak learning rate; null uses {rates_in_words(METHODS)}."
    )
    lr_scheduler: Literal["constant", "linear", "cosine"] = "cosine"
    """Learning rate schedule after the warm-up."""
    warmup_ratio: Share = 0.03
    """Share of the steps over which the learning rate rises from 0."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    """Clip the gradient's norm; null does not."""
    optimizer: Annotated[str, one_of(OPTIMIZERS)] = Field(default="adamw", description=told(OPTIMIZERS))
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    tiled_mlp: bool = False
    """Compute feed-forward blocks in tiles of 2,048 tokens or more, whose activations are made again in the backward pass:
    long rows need less memory. For the layers that fitune fuses (Llama, Mistral, Qwen and their like), under LoRA."""
    activation_offloading: bool = False
    """Keep the inputs of checkpointed layers in the host's memory until the backward pass: long rows need less of the
    card's. Needs `gradient_checkpointing`; on a CPU it has nothing to do."""
    seed: Annotated[int, Field(ge=0)] = 42
    """Seed for initial weights, dropout and row order."""

    @property
    def micro_rows(self) -> int:
        """Rows per forward pass."""
        return self.micro_batch_size or self.batch_size


class EvalSettings(Section):
    """What is measured on the held-out rows, and when."""

    every_steps: PositiveInt | None = None
    """Steps between evaluations; null evaluates at the end of each epoch."""
    samples: Annotated[int, Field(ge=0)] = 20
    """Held-out rows to generate answers for, before, during and after training; 0 measures the loss only."""
    max_new_tokens: PositiveInt = 128
    """Maximum length of a generated answer in tokens."""
    best_metric: Annotated[str, one_of(every_metric(METHODS))] = "loss"
    """Metric that selects the best checkpoint and controls early stopping; a method without an evaluation loss uses its
    first metric instead, such as the reward."""
    patience: PositiveInt | None = None
    """Stop when `best_metric` has not improved for this many evaluations; null never stops early."""


class MemorySettings(Section):
    """How much memory the run may use, and what `fit` may change to stay within it."""

    budget: str | None = None
    """Memory that the run may use, for example 16GiB; null uses what is free on the GPU, and sets no limit on a CPU."""
    margin: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of that memory that the plan must leave free; the default is the largest error measured in a plan."""
    may_change: list[
        Literal[
            "train.micro_batch_size",
            "train.gradient_checkpointing",
            "train.tiled_mlp",
            "train.activation_offloading",
            "train.optimizer",
            "train.tuning",
            "model.quantization",
            "data.max_length",
        ]
    ] = []
    """Settings that `fit` may change even where they are set. train.tuning: use LoRA instead of full fine-tuning.
    data.max_length: drop the longest rows."""


class RunSettings(Section):
    """Where the run is stored, and what it writes."""

    name: str | None = None
    """Name of the run's folder inside `folder`; null derives it from model, data and time."""
    folder: str = "runs"
    """Folder that holds all runs."""
    checkpoint_steps: PositiveInt | None = None
    """Steps between checkpoints; null saves one at each evaluation."""
    keep_checkpoints: PositiveInt = 2
    """Number of checkpoints to keep; the best one is always among them."""
    log_steps: PositiveInt = 1
    """Steps between logged metrics."""
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = []
    """Experiment trackers to report to; each must be installed."""


class ParallelSettings(Section):
    """How several GPUs train one model (docs/scale.md)."""

    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    """ddp: each GPU holds the whole model. fsdp2: each holds a part of every layer (sft and lm, without quantization). auto
    is ddp."""


class ExportSettings(Section):
    """What to export when training ends. An export that is not possible is refused before training starts."""

    to: list[Annotated[str, one_of(EXPORT_FORMS)]] = []
    """Formats to export to, in `export/` of the run's folder, each with a fidelity report; `fitune export` does it later."""
    gguf_type: Annotated[str, one_of(GGUF_TYPES)] = "f16"
    """Type of the weights in gguf and ollama exports."""


class TrainedAs(Section):
    """The settings that stand before the methods' own sections."""

    method: Annotated[str, one_of(METHODS)] = Field(default="sft", description=told(METHODS))
    fit: Literal["auto", "off"] = "auto"
    """auto: on a GPU, or with a memory.budget, choose the fastest configuration that fits before the weights are loaded;
    settings that are set are not changed. off: train with the settings as they are, without a plan."""
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
    parallel: ParallelSettings = ParallelSettings()
    export: ExportSettings = ExportSettings()
    trainer: dict[str, Any] = {}
    """Any other field of `transformers.TrainingArguments`, by its own name."""

    @property
    def own(self) -> Section | None:
        """The section of the run's method, where it has one."""
        name = METHODS[self.method].section
        return getattr(self, name) if name else None
