"""Load a base model: weights in their type, tokenizer, template, and what had to be grown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from fitune.errors import ModelError
from fitune.models.hardware import Hardware, Precision, settle_cpu
from fitune.models.load_config import load_config
from fitune.models.mixture.experts import expert_parameters
from fitune.models.quantization import QUANTIZATIONS
from fitune.models.quantization.quantize import (
    NO_QUANTIZATION,
    QuantizationConfig,
    bnb_config,
    broken_on_cpu,
    describe,
    experts_left,
    keep_standard_layout,
    only_plain_linear,
    quantize_in_place,
    quantized_layers,
    refuse_on_cpu,
    unquantized_on,
)
from fitune.models.quantization.quantized_loading import WhileReading, forget_quantizer, release_files
from fitune.models.source import ModelSource
from fitune.models.template import Template
from fitune.models.tokenizer import stop_ids, unreachable
from fitune.models.towers import auto_class, towers_note
from fitune.models.weight_files.gguf_reader import load_dense

# Tensors that files hold and text models need not take: buffers that are computed, heads for other uses, layers that
# predict tokens further ahead, and the parts of a model for pictures and sound.
KNOWN_UNUSED = re.compile(
    r"inv_freq$|position_ids$|\.(attn|attention|self_attn)\.(masked_)?bias$|^(lm_head|embed_out)\.weight$"
    r"|^(v_head|value_head|score|reward_head|classifier)\.|(^|\.)(mtp|nextn|eh_proj|enorm|hnorm)(\.|_|$)"
    r"|(^|\.)(vision|visual|image|audio|speech|multi_modal|mm_|multimodal)[a-z_]*\."
)


@dataclass(frozen=True)
class LoadedBase:
    """A base ready to be adapted or asked. `notes` are what the user should hear about it; `dense` is empty unless the
    weights before quantization were asked for: layer's name → weight, (out, in). `merged` are the adapters in its weights.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    template: Template
    source: ModelSource
    precision: Precision
    stop_ids: tuple[int, ...]
    new_token_ids: tuple[int, ...] = ()
    notes: tuple[str, ...] = field(default=())
    quantization: QuantizationConfig = NO_QUANTIZATION
    dense: dict[str, torch.Tensor] = field(default_factory=dict, compare=False, repr=False)
    merged: tuple[Path, ...] = ()


def load_base(
    source: ModelSource,
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    hardware: Hardware,
    precision: Precision,
    attention: str = "auto",
    trust_remote_code: bool = False,
    quantization: QuantizationConfig = NO_QUANTIZATION,
    keep_dense: bool = False,
    config: PretrainedConfig | None = None,
    allow_unused: bool | None = None,
    on_host: bool = False,
) -> LoadedBase:
    """Load the weights and grow the embeddings for the template's new tokens.

    Only safetensors (or GGUF) weights are read, unless the source was told to take pickled ones. `tokenizer` gains
    the template's tokens and the template itself, so that whatever is saved from here chats exactly as it was trained.

    Args:
        keep_dense: with a quantization, the weights of its layers as they were, in `LoadedBase.dense` (LoftQ); they
            take as much of the host's memory as the model without quantization.
        config: what `load_config` found; None reads it.
        on_host: leave it in the host's memory; whoever shards it moves the pieces.
        allow_unused: take a model that leaves tensors of its files unused: False refuses it, None and True note it.

    Raises:
        ModelError: weights missing, unused, damaged, or pickled; a quantization of a base that is quantized already.
    """
    if hardware.device == "cpu":
        settle_cpu()
    config = load_config(source, trust_remote_code) if config is None else config
    refuse_second_quantization(source, config, quantization)
    if quantization.on and hardware.device == "cpu" and not quantization.facts.trains_on_cpu:
        raise ModelError(
            f"model.quantization is {quantization.kind}, which a CPU does not compute; use a GPU, or another of "
            f"{', '.join(kind.name for kind in QUANTIZATIONS.values() if kind.trains_on_cpu)}"
        )
    options: dict[str, Any] = {"dtype": precision.dtype, "attn_implementation": attention_name(attention)}
    # One device by its number: the bare word "cuda" accelerate 1.15 takes for another one than cuda:0.
    device = torch.cuda.current_device() if hardware.device == "cuda" else hardware.device
    dense: dict[str, torch.Tensor] = {}
    if quantization.on:
        skeleton = build_on_meta(config, precision.dtype, attention)
        unquantized_on(skeleton, quantization, device)  # a layer that is not there is told before the weights are read
        # Of others transformers would take the tensors beside a packed weight for missing ones.
        if not source.gguf_file and not keep_dense and quantization.facts.loader:
            bnb_knows = only_plain_linear(skeleton) and not expert_parameters(skeleton)
            packing = (
                bnb_config(quantization, precision.dtype, skeleton, device)
                if bnb_knows and device != "cpu"  # where transformers' own holds every page of the files to the end
                else WhileReading(quantization, precision.dtype, device)
            )
            options |= {"quantization_config": packing, "device_map": {"": device}}
    try:
        if source.gguf_file:
            path = Path(source.path) / source.gguf_file
            model, report = load_dense(path, precision.dtype, attention_name(attention))
        else:
            loaded: Any = (auto_class(config) or AutoModelForCausalLM).from_pretrained(
                source.path,
                config=config,
                revision=source.revision,
                use_safetensors=None if source.pickled is None else not source.pickled,
                weights_only=True,  # of a pickle: torch's restricted reader, which makes tensors and runs nothing
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **options,
            )
            model, report = loaded
    except Exception as error:  # transformers raises many kinds here; each means the same to the user
        raise ModelError(unreachable(source, "weights", error)) from error
    if missing := sorted(report["missing_keys"]):
        # transformers would fill these with random numbers and go on.
        raise ModelError(f"{source.name} lacks {len(missing)} of the model's weights, for example {missing[0]}")
    packing = options.get("quantization_config")
    if isinstance(packing, WhileReading):
        forget_quantizer(model)
    elif quantization.on and packing is None:
        dense = quantize_in_place(model, quantization, precision.dtype, device, keep_dense)
    if quantization.on and device == "cpu":
        release_files(model)
    unused = [] if source.gguf_file else unused_weights(report["unexpected_keys"])
    if unused and allow_unused is False:
        raise ModelError(f"{told_unused(source, unused)}; mend config.json, or set model.allow_unused_weights")
    notes = [f"precision {precision.name}: {precision.reason}"]
    if unused:
        notes.append(told_unused(source, unused))
    if kept := towers_note(model, config):
        notes.append(kept)
    if trust_remote_code:
        notes.append(f"model.trust_remote_code is on: Python code that came with {source.name} runs here")
    if source.pickled is not False:
        notes.append(f"model.allow_pickled is on: pickled weights of {source.name} are loaded, tensors only")
    if quantized_layers(model):
        keep_standard_layout(model)
        if device == "cpu":
            refuse_on_cpu(model, source.name)
        notes.append(describe(model, quantization, precision.name, precision.dtype.itemsize))
        if told := experts_left(model, precision.name):
            notes.append(told)
        if quantization.on and device == "cpu" and (left := broken_on_cpu(model, quantization.facts)):
            kind = quantization.facts
            notes.append(
                f"{len(left)} layers whose input size is not a multiple of {kind.cpu_inputs} stay in {precision.name}, "
                f"{left[0]} first: bitsandbytes computes their {kind.bits} bits wrongly on a CPU"
            )
    new_ids = add_template_tokens(model, tokenizer, template)
    if template.origin == "chatml":
        notes.append(f"no chat template in {source.name}: ChatML is used and saved with the result")
    if new_ids:
        notes.append(f"tokens {', '.join(template.added_tokens)} added; only their embedding rows are trained")
    tokenizer.chat_template = template.text
    if not quantization.on and not on_host:  # a quantized base is made where it stays
        cast(Any, model).to(hardware.device)
    model.config.use_cache = True
    if note := settle_generation(model, source.name):
        notes.append(note)
    stops = stop_ids(tokenizer, model.generation_config, template)
    if model.generation_config is not None:
        model.generation_config.eos_token_id = list(stops)
        model.generation_config.pad_token_id = tokenizer.pad_token_id
    return LoadedBase(
        model=model,
        tokenizer=tokenizer,
        template=template,
        source=source,
        precision=precision,
        stop_ids=stops,
        new_token_ids=new_ids,
        notes=tuple(notes),
        quantization=quantization,
        dense=dense,
    )


def unused_weights(unexpected: Iterable[str]) -> list[str]:
    """Tensors of the files that the model does not take, in order; those known to be of no use to it left out."""
    return sorted(name for name in unexpected if not KNOWN_UNUSED.search(name))


def told_unused(source: ModelSource, unused: Sequence[str]) -> str:
    """The sentence that names them."""
    return (
        f"unused weights: {len(unused)} tensors in the files of {source.name} belong to no layer of the model that its "
        f"config.json describes, {', '.join(unused[:3])} first"
    )


def settle_generation(model: PreTrainedModel, name: str) -> str | None:
    """Make the model's generation config one that transformers saves; returns what had to change, None for nothing.

    Sampling options without ``do_sample`` (as Llama 2 chat was published) are read by `from_pretrained` and refused by
    `save_pretrained`. They mean sampling; whatever else is refused is left out but for the special tokens.
    """
    config = cast("GenerationConfig | None", model.generation_config)
    if config is None or (fault := _unsavable(config)) is None:
        return None
    config.do_sample = True
    if _unsavable(config) is None:
        return f"generation_config.json of {name} has sampling options without do_sample: do_sample is set to true"
    ids = {kind: getattr(config, kind, None) for kind in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.generation_config = GenerationConfig(**ids)
    return f"generation_config.json of {name} is left out but for its special tokens, since it cannot be saved: {fault}"


def _unsavable(config: GenerationConfig) -> str | None:
    """Why transformers would not save the config, in one line."""
    try:
        config.validate(strict=True)
    except (ValueError, TypeError) as error:
        return " ".join(str(error).split())
    return None


def refuse_second_quantization(source: ModelSource, config: PretrainedConfig, quantization: QuantizationConfig) -> None:
    """Raises ModelError when the base on the disk is quantized already and another quantization is asked for."""
    stored = getattr(config, "quantization_config", None)
    if stored is None or not quantization.on or source.gguf_file:
        return
    method = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
    raise ModelError(
        f"{source.name} is quantized already ({getattr(method, 'value', method)}), and model.quantization is "
        f"{quantization.kind}; leave it at none to use the model as it is, or name the unquantized model"
    )


def add_template_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, template: Template
) -> tuple[int, ...]:
    """Add the template's missing special tokens; grow the embeddings when no spare row is there.

    Many models keep more rows than tokens (Pythia: 50,304 rows, 50,277 tokens), and then nothing grows. A new row
    starts at the mean of the old ones, which needs no random numbers: a resumed run begins with the same rows.
    """
    if not template.added_tokens:
        return ()
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(template.added_tokens)}, replace_extra_special_tokens=False
    )
    ids = tuple(cast("list[int]", tokenizer.convert_tokens_to_ids(list(template.added_tokens))))
    rows = input_weight(model).shape[0]
    if max(ids) >= rows:
        model.resize_token_embeddings(max(ids) + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            for parameter in layer.parameters() if layer is not None else ():
                parameter[list(ids)] = parameter[: min(ids)].float().mean(0).to(parameter.dtype)
    return ids


def input_weight(model: PreTrainedModel) -> torch.Tensor:
    """The input embedding's weight, (rows, hidden size)."""
    return cast(torch.Tensor, model.get_input_embeddings().weight)


def build_on_meta(config: PretrainedConfig, dtype: torch.dtype, attention: str = "auto") -> PreTrainedModel:
    """The same model class without memory, for the plan: every tensor is on the meta device."""
    with torch.device("meta"):
        kind = auto_class(config) or AutoModelForCausalLM
        model = kind.from_config(config, dtype=dtype, attn_implementation=attention_name(attention))
    model.config.use_cache = False
    return model.train()


def attention_name(attention: str) -> str | None:
    """transformers' name of the attention kernel; auto leaves SDPA, its default where the model has it."""
    return None if attention == "auto" else attention
