"""What happens to adapters in memory: add, use, merge, unmerge, unload, delete, rename; all of it by PEFT's operations.

In: a `PeftModel`. Out: the same model changed, or the bare base, with a report of what was restored.
Knows nothing of runs or the command line.

A merge rounds: W + s·B·A in the base's own type, and again in 8 or 4 bits over a quantized base. Taking the adapter out
by arithmetic gives W back only as far as that rounding allows, so a merge keeps the adapted layers aside unless it is
told not to, and `unmerge` puts them back.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import LoraConfig, LoraModel, PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from fitune.adapters.adapter_folder import add_adapter
from fitune.adapters.base_snapshot import (
    Copies,
    Restored,
    adapted_layers,
    changed,
    compare,
    copy_layers,
    digests,
    put_back,
)
from fitune.adapters.inject import undo
from fitune.errors import ModelError, did_you_mean
from fitune.models.mixture.experts import is_placeholder
from fitune.models.quantization.quantize import is_quantized, kind_of

BASE = "base"
"""The word for no adapter at all, where a name is asked for."""


@dataclass(frozen=True)
class Merged:
    """A merge: which adapters, into how many layers, how many of these are quantized, and what is kept to take it back."""

    names: tuple[str, ...]
    layers: int
    kept_bytes: int
    quantized_layers: int = 0

    def __str__(self) -> str:
        kept = f"{self.kept_bytes / 1e6:,.1f} MB backed up to restore the base bit for bit"
        how = kept if self.kept_bytes else "no backup: unmerge restores the base only as far as rounding allows"
        told = f"{', '.join(self.names)} merged into {self.layers} layers; {how}"
        if self.quantized_layers:
            told += (
                f"; {self.quantized_layers} of them are quantized, and rounding the sum to their few bits can cost as much as "
                "the adapter adds: answers change. To keep the result, `fitune export --to merged` merges in 16 bits"
            )
        return told


def plain_name(name: str) -> str:
    """A name that PEFT takes for an adapter: it parts names by dots."""
    return name.replace(".", "-")


def names(model: PeftModel) -> tuple[str, ...]:
    """Adapters in memory, in the order in which they came."""
    return tuple(model.peft_config)


def active(model: PeftModel) -> tuple[str, ...]:
    """Adapters that answer now; none when the base answers alone."""
    return () if not _enabled(model) else tuple(model.active_adapters)


def merged(model: PeftModel) -> tuple[str, ...]:
    """Adapters that are merged into the base's weights."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return tuple(dict.fromkeys(name for layer in layers for name in layer.merged_adapters))


def add(model: PeftModel, folder: Path, name: str) -> None:
    """Load another adapter of the same base beside those that are there; `use` switches to it.

    Raises:
        ModelError: the name is taken, or the adapter belongs to another base.
    """
    if name in names(model) or name == BASE:
        raise ModelError(f'there is already an adapter "{name}"; give the new one another name')
    if merged(model):
        raise ModelError(f"{', '.join(merged(model))} is merged into the base; unmerge it before another is loaded")
    add_adapter(model, folder, name)


def use(model: PeftModel, name: str) -> None:
    """Answer with one adapter, or with the base alone (``base``).

    Raises:
        ModelError: no such adapter, or another one is merged.
    """
    if merged(model):
        raise ModelError(f"{', '.join(merged(model))} is merged into the base; unmerge it first")
    if name == BASE:
        tuner(model).disable_adapter_layers()
        return
    _check(model, name)
    tuner(model).enable_adapter_layers()
    model.set_adapter(name)
    model.requires_grad_(False)  # PEFT makes what it activates trainable


def merge(model: PeftModel, keep: bool = True) -> Merged:
    """Add the active adapter into the base's own weights.

    Args:
        keep: hold the adapted layers aside, so that `unmerge` restores them bit for bit; costs their size in memory.

    Raises:
        ModelError: no adapter is active, one is merged already, or one is of a kind that PEFT cannot merge.
    """
    if merged(model):
        raise ModelError(f"{', '.join(merged(model))} is merged already; unmerge it first")
    chosen = active(model)
    if not chosen:
        raise ModelError(f"no adapter is on, so there is nothing to merge; in memory are: {', '.join(names(model))}")
    if any(is_placeholder(parameter) for parameter in model.parameters()):
        raise ModelError(
            "the base's experts are stored in few bits, into which nothing can be merged; export the adapter merged "
            "(`fitune export --to merged` takes the 16-bit base), or switch it on and off"
        )
    copies = copy_layers(model)
    if fixed := [kind.name for layer, _ in copies.layers.values() if (kind := kind_of(layer)) and not kind.merges]:
        raise ModelError(
            f"the base is stored in {fixed[0]}, into which PEFT cannot merge; export the adapter merged (`fitune export "
            "--to merged` takes the 16-bit base), or switch it on and off"
        )
    with _quiet():
        tuner(model).merge_adapter(list(chosen))
    # Without the copies, some values of each layer are held for the report alone.
    model.fitune_copies = copies if keep else None  # type: ignore[assignment]
    quantized = sum(is_quantized(layer) for layer, _ in copies.layers.values())
    return Merged(chosen, len(copies), copies.num_bytes if keep else 0, quantized)


def unmerge(model: PeftModel, reference: Copies | None = None) -> Restored:
    """Take the merged adapter out of the base again.

    Args:
        reference: what the layers held before, to measure a merge that kept nothing.

    Returns:
        How the base came back; without copies and reference only that it was not proved.

    Raises:
        ModelError: nothing is merged.
    """
    if not merged(model):
        raise ModelError("no adapter is merged into the base, so there is nothing to unmerge")
    copies: Copies | None = getattr(model, "fitune_copies", None)
    with _quiet():
        tuner(model).unmerge_adapter()
    if copies is not None:
        put_back(copies)
        model.fitune_copies = None  # type: ignore[assignment]
    against = copies or reference
    if against is None:
        return Restored(False, float("nan"), sum(1 for _ in adapted_layers(model)), "not measured: nothing was kept")
    return compare(against)


def unload(model: PeftModel, before: dict[str, str] | None = None) -> tuple[PreTrainedModel, list[str]]:
    """The bare base, every adapter gone.

    Args:
        before: `digests` of the base before any adapter came, for the proof.

    Returns:
        The base, and the names of its tensors that are not what they were (empty: bit for bit the same).
    """
    if merged(model):
        unmerge(model)
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            # With an adapter on, PEFT leaves what it trained in full in the base's place, and its `set_adapter([])`
            # refuses an empty list here.
            module._active_adapter = []  # pyright: ignore[reportPrivateUsage]
    base = cast(PreTrainedModel, tuner(model).unload())
    undo(base)
    after = digests(base) if before is not None else {}
    return base, changed(before or {}, after)


def delete(model: PeftModel, name: str) -> str:
    """Forget an adapter; if it was answering, the base answers alone from now on. Returns who answers.

    Raises:
        ModelError: no such adapter, it is merged into the base, or it is the last one (`unload` takes that out).
    """
    _check(model, name)
    if name in merged(model):
        raise ModelError(f'"{name}" is merged into the base; unmerge it before it is deleted')
    was_active = name in active(model)
    if len(names(model)) == 1:
        raise ModelError(f'"{name}" is the only adapter in memory; unload it to return to the base')
    with _quiet():
        model.delete_adapter(name)
    if was_active:
        use(model, BASE)
    return ", ".join(active(model)) or BASE


def rename(model: PeftModel, old: str, new: str) -> None:
    """Call an adapter by another name. PEFT has no such operation: its containers' keys are changed.

    Raises:
        ModelError: no such adapter, a name that is taken or that PEFT cannot take, or a merged adapter.
    """
    _check(model, old)
    if new in names(model) or new == BASE or "." in new or not new.strip():
        raise ModelError(f'"{new}" cannot be an adapter\'s name: it is taken, empty, or holds a dot; choose another')
    if old in merged(model):
        raise ModelError(f'"{old}" is merged into the base; unmerge it before it is renamed')
    config = model.peft_config
    keys = list(config)
    entries = {new if key == old else key: config[key] for key in keys}
    config.clear()
    config.update(entries)
    parts: list[Any] = list(model.modules())
    for module in parts:
        held_in = (*getattr(module, "adapter_layer_names", ()), *getattr(module, "other_param_names", ()))
        for attribute in dict.fromkeys((*held_in, "lora_variant")):
            held = getattr(module, attribute, None)
            if held is not None and hasattr(held, "keys") and old in held:
                value = held[old]
                del held[old]
                held[new] = value
        if isinstance(known := getattr(module, "_adapters", None), set) and old in known:
            known.symmetric_difference_update((old, new))
        if hasattr(module, "_active_adapter"):
            module._active_adapter = _renamed(module._active_adapter, old, new)
    for holder in (model, tuner(model)):
        holder.active_adapter = _renamed(holder.active_adapter, old, new)


def _renamed(adapters: str | list[str], old: str, new: str) -> str | list[str]:
    """PEFT keeps one name as text, several as a list."""
    if isinstance(adapters, list):
        return [new if one == old else one for one in adapters]
    return new if adapters == old else adapters


def tuner(model: PeftModel) -> LoraModel:
    """PEFT's `LoraModel`, which has the operations on all layers."""
    return cast(LoraModel, model.base_model)


def config_of(model: PeftModel, name: str) -> LoraConfig:
    """PEFT's configuration of an adapter in memory."""
    return cast(LoraConfig, model.peft_config[name])


def _enabled(model: nn.Module) -> bool:
    layers = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    return not any(layer.disable_adapters for layer in layers)


def _check(model: PeftModel, name: str) -> None:
    if name not in model.peft_config:
        known = names(model)
        raise ModelError(f'there is no adapter "{name}"{did_you_mean(name, known)}; in memory are: {", ".join(known)}')


@contextmanager
def _quiet() -> Generator[None, None, None]:
    """PEFT warns of rounding at each layer, and of choosing another adapter; fitune measures the one, decides the other."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Merge|Unmerge) lora module to .-bit linear")
        warnings.filterwarnings("ignore", message="Adapter .* was active which is now deleted")
        yield
