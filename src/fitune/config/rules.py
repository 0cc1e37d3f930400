"""Faults that two settings make together.

In: a whole `Settings`. Out: for each fault the settings that take part and the sentence.
"""

from __future__ import annotations

from collections.abc import Iterator

from fitune.config.fields import all_fields
from fitune.config.method_rules import method_faults
from fitune.config.sections import Settings
from fitune.exporting.forms import EXPORT_FORMS
from fitune.methods.method import Fault
from fitune.methods.registry import METHODS
from fitune.models.quantization import QUANTIZATIONS, doubled, either
from fitune.models.quantization.nf4 import NF4
from fitune.models.quantization.quantization import Quantization
from fitune.ops.optimizers.adamw_8bit import ADAMW_8BIT
from fitune.sizes import parse_bytes


def cross_faults(settings: Settings) -> Iterator[Fault]:
    """Each fault as (keys, what comes after the first key's place)."""
    yield from _batch(settings)
    yield from _offloading(settings)
    yield from _loss_on(settings)
    yield from _evaluation(settings)
    yield from _ignored(settings)
    yield from _quantization(settings)
    yield from _export(settings)
    yield from _parallel(settings)
    yield from _memory(settings)
    yield from method_faults(settings)
    if settings.model.attention == "flash_attention_2" and settings.model.device == "cpu":
        yield ("model.attention", "model.device"), "is flash_attention_2, which needs a GPU; use sdpa on the CPU"
    if settings.run.name is not None and (set(settings.run.name) & set("/\\") or settings.run.name in (".", "..")):
        yield ("run.name",), f'is "{settings.run.name}"; use one folder name without slashes, and set run.folder'
    if settings.lora.targets == []:
        yield ("lora.targets",), "is an empty list; use all-linear, or name modules such as [q_proj, v_proj]"


def _batch(settings: Settings) -> Iterator[Fault]:
    whole, micro = settings.train.batch_size, settings.train.micro_batch_size
    if micro is not None and whole % micro:
        divisors = ", ".join(str(size) for size in range(1, whole + 1) if whole % size == 0)
        yield (
            ("train.micro_batch_size", "train.batch_size"),
            f"is {micro}, which does not divide train.batch_size {whole}; use one of {divisors}",
        )


def _parallel(settings: Settings) -> Iterator[Fault]:
    kind, strategy = settings.model.quantization, settings.parallel.strategy
    if strategy != "fsdp2":
        return
    if kind != "none":
        yield (
            ("parallel.strategy", "model.quantization"),
            f"is fsdp2, and model.quantization is {kind}: its packed weights cannot be cut between GPUs. Use ddp, where each "
            "GPU holds the quantized base whole, or model.quantization none",
        )
    if METHODS[settings.method].reads not in ("rows", "text"):
        yield (
            ("parallel.strategy", "method"),
            f"is fsdp2, which trains sft and lm, and method is {settings.method}; use ddp",
        )
    if settings.train.optimizer not in ("adamw", "sgd"):
        name = settings.train.optimizer
        yield (
            ("parallel.strategy", "train.optimizer"),
            f"is fsdp2, and train.optimizer is {name}, whose states cannot be cut between GPUs; use adamw or sgd",
        )


def _offloading(settings: Settings) -> Iterator[Fault]:
    if settings.train.activation_offloading and not settings.train.gradient_checkpointing:
        yield (
            ("train.activation_offloading", "train.gradient_checkpointing"),
            "is true, and train.gradient_checkpointing is false, so no layer keeps its input; set both, or neither",
        )


def _loss_on(settings: Settings) -> Iterator[Fault]:
    loss_on, template = settings.data.loss_on, settings.data.response_template
    if loss_on == "response_template" and template is None:
        yield (
            ("data.loss_on", "data.response_template"),
            'is response_template, and data.response_template is null; set it, for example "### Response:"',
        )
    if template is not None and loss_on != "response_template":
        yield (
            ("data.response_template", "data.loss_on"),
            f"is set, and data.loss_on is {loss_on}; set data.loss_on to response_template, or remove this",
        )


def _evaluation(settings: Settings) -> Iterator[Fault]:
    metric, held_out = settings.eval.best_metric, settings.data.eval is not None or settings.data.eval_share > 0
    if metric in METHODS[settings.method].answer_metrics and settings.eval.samples == 0:
        yield (
            ("eval.best_metric", "eval.samples"),
            f"is {metric}, which needs generated answers, and eval.samples is 0; use samples of 1 or more, or loss",
        )
    if not held_out:
        for key, name in (("eval.patience", "patience"), ("eval.every_steps", "every_steps")):
            if getattr(settings.eval, name) is not None:
                yield (
                    (key, "data.eval_share", "data.eval"),
                    "is set, and there are no held-out rows (data.eval is null, data.eval_share 0); hold some out",
                )
        if metric != "loss":
            yield (
                ("eval.best_metric", "data.eval_share", "data.eval"),
                f"is {metric}, and there are no held-out rows (data.eval is null, data.eval_share 0); hold some out",
            )


def _quantization(settings: Settings) -> Iterator[Fault]:
    kind, lora = settings.model.quantization, settings.lora
    if kind == "none":
        if settings.model.unquantized:
            yield (
                ("model.unquantized", "model.quantization"),
                f"is set, and model.quantization is none; set model.quantization to {either(QUANTIZATIONS)}, or remove this",
            )
    elif settings.model.merge:
        yield (
            ("model.merge", "model.quantization"),
            f"is set, and model.quantization is {kind}: the merged weights would be rounded to so few bits. Continue that adapter "
            "(lora.continue_from), or leave the base unquantized",
        )
    elif settings.train.tuning == "full":
        yield (
            ("model.quantization", "train.tuning"),
            f"is {kind}, and train.tuning is full: quantized weights cannot be trained. Use train.tuning lora (adapters "
            f"over the quantized base), or model.quantization none with train.optimizer {ADAMW_8BIT.name} to save memory",
        )
    elif lora.init == "pissa":
        yield (
            ("lora.init", "model.quantization"),
            f"is pissa, which moves a part of each weight into the adapter, and model.quantization is {kind}, whose "
            "weights cannot be changed; use loftq, which starts from the quantization error, or default",
        )
    if lora.init == "loftq" and kind == "none":
        yield (
            ("lora.init", "model.quantization"),
            "is loftq, which begins with the error of a quantization, and model.quantization is none; set it to "
            f"{either(QUANTIZATIONS)}, or use pissa or default",
        )
    if kind != "none" and settings.model.device == "cpu":
        yield from _quantized_on_cpu(QUANTIZATIONS[kind], lora.dora)
    if settings.model.double_quant and not (kind in QUANTIZATIONS and QUANTIZATIONS[kind].double_quant):
        yield (
            ("model.double_quant", "model.quantization"),
            f"is true, and model.quantization is {kind}, which has no block scales; use {doubled()}, or remove this",
        )


def _quantized_on_cpu(kind: Quantization, dora: bool) -> Iterator[Fault]:
    if not kind.trains_on_cpu:
        yield (
            ("model.quantization", "model.device"),
            f"is {kind.name}, and model.device is cpu, which does not compute it; use a GPU, or another quantization",
        )
    elif dora and not kind.dora_on_cpu:
        yield (
            ("lora.dora", "model.quantization", "model.device"),
            f"is true, and a CPU does not compute it over {kind.name}; use model.quantization {NF4.name}, or remove this",
        )


def _export(settings: Settings) -> Iterator[Fault]:
    wanted = [EXPORT_FORMS[name] for name in settings.export.to]
    alone = next((form.name for form in wanted if not form.merges), None)
    if alone is not None and settings.train.tuning == "full":
        yield (
            ("export.to", "train.tuning"),
            f"has {alone}, and train.tuning is full, which has no adapter; use merged",
        )
    if settings.lora.init == "loftq" and any(form.merges for form in wanted):
        yield (
            ("export.to", "lora.init"),
            "asks for a merge, and lora.init is loftq, whose adapter only fits its quantized base; use adapter",
        )
    if settings.export.gguf_type != "f16" and not any(form.takes_gguf_type for form in wanted):
        typed = " nor ".join(form.name for form in EXPORT_FORMS.values() if form.takes_gguf_type)
        yield (
            ("export.gguf_type", "export.to"),
            f"is {settings.export.gguf_type}, and export.to has neither {typed}; add one, or remove this",
        )


def _memory(settings: Settings) -> Iterator[Fault]:
    memory = settings.memory
    if memory.budget is not None:
        try:
            parse_bytes(memory.budget)
        except ValueError as error:
            yield ("memory.budget",), str(error)
        if settings.model.device == "mps":
            yield (
                ("memory.budget", "model.device"),
                "is set, and model.device is mps, whose memory cannot be planned yet; remove it, or use cpu or cuda",
            )
    if settings.fit == "off":
        for name in ("budget", "may_change", "margin"):
            if getattr(memory, name) != all_fields()[f"memory.{name}"].default:
                yield (
                    (f"memory.{name}", "fit"),
                    "is set, and fit is off, which plans nothing; use fit auto, or remove it",
                )


def _ignored(settings: Settings) -> Iterator[Fault]:
    """Settings that would be ignored: set to something else than their default where nothing reads them."""
    if settings.model.merge and settings.lora.continue_from is not None:
        yield (
            ("model.merge", "lora.continue_from"),
            "is set, and lora.continue_from continues an adapter that already has its merged adapters; remove it",
        )
    if settings.train.tuning == "full":
        for key, field in all_fields().items():
            if field.section == "lora" and _value(settings, key) != field.default:
                yield (key, "train.tuning"), "is set, and train.tuning is full, which has no adapters; remove it"
    if settings.data.eval is not None and settings.data.eval_share != all_fields()["data.eval_share"].default:
        yield (
            ("data.eval_share", "data.eval"),
            "is set, and data.eval names the held-out rows; remove one of the two",
        )
    if settings.lora.continue_from is not None and settings.train.tuning == "lora":
        for key, field in all_fields().items():
            if field.section == "lora" and field.name != "continue_from" and _value(settings, key) != field.default:
                yield (
                    (key, "lora.continue_from"),
                    "is set, and lora.continue_from continues an adapter that has its own options; remove it",
                )
    sources = settings.data.train, settings.data.eval or ""
    if settings.data.hub_split != "train" and not any(source.startswith("hub:") for source in sources):
        yield ("data.hub_split", "data.train", "data.eval"), "is set, and no data comes from the hub; remove it"


def _value(settings: Settings, key: str) -> object:
    section, name = key.split(".")
    return getattr(getattr(settings, section), name)
