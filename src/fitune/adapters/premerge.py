"""A base with adapters merged into its weights, over which a new adapter is trained; and how it is found again.

In: a loaded base, adapters' folders. Out: the base with the adapters in its weights; beside a new adapter, copies of
those that it stands on.

An adapter that was trained over a merged base is nothing without it. Its folder therefore holds the merged adapters
(small, beside the base), and whoever opens it merges them again, in the same order and type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

from peft import LoraModel
from transformers import PreTrainedModel

from fitune.adapters.adapter_folder import load_adapter, template_digest
from fitune.adapters.inject import reset_undo, undo_of
from fitune.adapters.locate import read_facts
from fitune.errors import ModelError
from fitune.models.load_base import LoadedBase, input_weight


def merge_into(base: LoadedBase, folders: Sequence[Path]) -> LoadedBase:
    """Merge adapters into the base, one after another, rounding to the base's type each time.

    Raises:
        ModelError: as `load_adapter`; a quantized base, which would round the update away; another template; an adapter
            of a kind that PEFT cannot merge.
    """
    for folder in folders:
        if base.quantization.on:
            raise ModelError(
                f"model.merge names {folder}, and model.quantization is {base.quantization.kind}: the merged weights would be "
                "rounded to so few bits; continue that adapter (lora.continue_from), or merge in 16 bits"
            )
        saved = read_facts(folder).get("template")
        if saved and saved.get("sha256") not in (None, template_digest(base.template)):
            raise ModelError(
                f"the adapter in {folder} was trained with another chat template; "
                f"set model.chat_template to {folder / 'chat_template.jinja'}"
            )
        dtype = input_weight(base.model).dtype
        model = load_adapter(base.model, folder)
        try:
            merged = cast(PreTrainedModel, cast(LoraModel, model.base_model).merge_and_unload())
        except (ValueError, NotImplementedError) as error:
            raise ModelError(f"the adapter in {folder} cannot be merged: {error}") from error
        for hook in undo_of(merged).hooks:
            hook.remove()
        reset_undo(merged)  # trained biases are the new base's own
        for parameter in merged.parameters():
            parameter.requires_grad = False
            if parameter.dtype != dtype:  # norms and modules that were trained in fp32
                parameter.data = parameter.data.to(dtype)
        note = f"merged into the base: {folder}, rounded to {base.precision.name}"
        base = replace(base, model=merged, merged=(*base.merged, folder), notes=(*base.notes, note))
    return base
