"""The base, made ready to be trained: a fresh adapter, an earlier one, or every weight.

In: a `RunContext`. Out: the model with its trained parameters marked by ``requires_grad``.
"""

from __future__ import annotations

from peft import PeftModel
from transformers import PreTrainedModel

from fitune.adapters.adapter_folder import add_adapter, continue_adapter
from fitune.adapters.inject import attach, experts_note, lora_config
from fitune.adapters.locate import lora_options
from fitune.adapters.low_rank_start import start_loftq
from fitune.adapters.reference import REFERENCE
from fitune.console import log, warn
from fitune.methods.context import RunContext
from fitune.models.quantization.quantize import refuse_full_tuning
from fitune.models.towers import tower_names
from fitune.ops.fused_layers import use_tiles


def adapt(run: RunContext) -> PreTrainedModel | PeftModel:
    """The model with its trained parameters marked."""
    model = _marked(run)
    if run.tiled_mlp and not use_tiles(model):
        warn("train.tiled_mlp is on, and this model has no layers that fitune computes in tiles: it changes nothing")
    return model


def _marked(run: RunContext) -> PreTrainedModel | PeftModel:
    base = run.base
    if run.tuning == "full":
        refuse_full_tuning(base.model, base.source.name)
        base.model.requires_grad_(True)
        for name in tower_names(base.model):
            base.model.get_submodule(name).requires_grad_(False)
        return base.model
    if run.start is not None:
        options = lora_options(run.start)
        log(f"continuing the adapter in {run.start}: rank {options['rank']}, alpha {options['alpha']:g}")
        _warn_trained_bias(options["bias"])
        return _told(continue_adapter(base, run.start))
    _warn_trained_bias(run.lora["bias"])
    model = attach(base.model, lora_config(base.model, **run.lora, new_token_ids=base.new_token_ids))
    if run.lora["init"] == "loftq":
        log(str(start_loftq(model, base.dense)))
        base.dense.clear()  # as large as the base before quantization
    return _told(model)


def _told(model: PeftModel) -> PeftModel:
    """The model, once it is said how much of a mixture the adapter lies over."""
    if note := experts_note(model):
        log(note)
    return model


def adapt_with_reference(run: RunContext) -> PreTrainedModel | PeftModel:
    """`adapt`, and where training goes on with an earlier adapter, a frozen copy of it for `as_reference`."""
    model = adapt(run)
    if isinstance(model, PeftModel) and run.start is not None:
        add_adapter(model, run.start, REFERENCE)
        for name, value in model.named_parameters():
            if REFERENCE in name:
                value.requires_grad_(False)
    return model


def _warn_trained_bias(bias: str) -> None:
    if bias != "none":
        warn(f"lora.bias is {bias}: trained biases change the base model even with the adapter switched off")
