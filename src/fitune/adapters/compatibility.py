"""Which base an adapter belongs to: what it says of itself, what the base at hand is, and whether the two agree.

In: an adapter's folder and a loaded base. Out: the adapter's tensors, or `ModelError` with what differs.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import cast

import torch
from peft.tuners.lora import ParamWrapper
from safetensors.torch import load_file
from transformers import PretrainedConfig, PreTrainedModel

from fitune.adapters.locate import Facts, read_config, read_facts
from fitune.errors import ModelError
from fitune.models.load_base import input_weight
from fitune.models.quantization.quantize import QuantizationConfig, is_quantized, stored_as
from fitune.models.weight_files.adapter_check import check_adapter_files
from fitune.models.weight_files.safetensors_check import check_safetensors


def fingerprint(base: PreTrainedModel) -> str | None:
    """Hash of some of the frozen input embedding, which tells a base from its fine-tuned brother of equal shapes.

    Taken in bf16, so that a base opened in fp32 and in bf16 has the same; None in fp16, which rounds otherwise.
    """
    layer = base.get_input_embeddings()
    # PEFT's wrappers (a module trained in full, trained rows, LoRA) each keep the frozen layer under another name.
    while kept := [
        part for part in ("original_module", "token_adapter", "base_layer") if dict(layer.named_children()).get(part)
    ]:
        layer = layer.get_submodule(kept[0])
    weight = cast(torch.Tensor, layer.weight).detach()
    if weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    values = weight[:128].flatten()[::7].to(torch.bfloat16).float().cpu()
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def check_belongs(base: PreTrainedModel, folder: Path) -> dict[str, torch.Tensor]:
    """The adapter's tensors, once it is sure that they belong to this base.

    Raises:
        ModelError: another base, another quantization where that matters, pickled or damaged weights.
    """
    check_adapter_files(folder)
    facts, config = read_facts(folder), base.config
    found = {
        "model_type": config.model_type,
        "hidden_size": getattr(config, "hidden_size", None),
        "num_layers": getattr(config, "num_hidden_layers", None),
        "embedding_rows": input_weight(base).shape[0],
        "weights": fingerprint(base),
    }
    if why := _another_name(facts, config):
        raise ModelError(f"the adapter in {folder} belongs to another base: {why}")
    for key, value in found.items():
        then = facts.get(key)
        if value is not None and then not in (None, value):
            raise ModelError(
                f"the adapter in {folder} belongs to another base: its {key.replace('_', ' ')} is {then}, "
                f"this model's is {value}. It was trained on {facts['base']['name']}"
            )
    wanted, stored = QuantizationConfig.from_dict(facts.get("quantization")), stored_as(base)
    if facts.get("init") == "loftq" and (wanted.kind, wanted.double_quant) != (stored.kind, stored.double_quant):
        raise ModelError(
            f"the adapter in {folder} was initialised with LoftQ over {wanted.name}: it compensates the error of "
            f"that quantization, and this base is stored in {stored.name if stored.on else 'full'}; "
            f"set model.quantization to {wanted.kind}"
        )
    weights = folder / "adapter_model.safetensors"
    if not weights.exists():
        raise ModelError(f"{folder} has no adapter_model.safetensors; pickled adapters are not loaded")
    check_safetensors(weights)
    try:
        tensors = load_file(weights)
    except Exception as error:  # safetensors raises its own class for each kind of damage
        raise ModelError(f"{weights} is damaged: {error}") from error
    check_shapes(base, folder, tensors)
    for name, tensor in tensors.items():
        if not name.startswith("base_model.model."):
            raise ModelError(f"{weights} has a tensor {name}, which belongs to no adapter of PEFT; save it again")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{weights} has values that are NaN or infinite, in {name}; train it again")
    return tensors


def _another_name(facts: Facts, config: PretrainedConfig) -> str | None:
    """Why the base's hub name or commit shows another model; None where they agree or tell nothing.

    A folder may be moved, so its name tells nothing; then shapes and a sample of the weights have to agree.
    """
    wanted, name = str(facts["base"]["name"]), str(getattr(config, "_name_or_path", "") or "")
    both_on_hub = all(one.count("/") == 1 and not Path(one).exists() for one in (wanted, name))
    if both_on_hub and wanted.lower() != name.lower():
        return f"it was trained on {wanted}, and this model is {name}"
    then, now = facts.get("commit"), getattr(config, "_commit_hash", None)
    if both_on_hub and then is not None and now is not None and then != now:
        return f"it was trained on {wanted} at commit {then}, and this is commit {now}; set model.revision to the first"
    return None


def check_shapes(base: PreTrainedModel, folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Raises ModelError for a LoRA matrix over a layer that this base does not have, or of another size.

    A is (rank, inputs), B is (outputs, rank); PEFT names them after the layer.
    """
    layers, config = dict(base.named_modules()), read_config(folder)
    ranks = {config["r"], *(config.get("rank_pattern") or {}).values()}
    for name, tensor in tensors.items():
        place, mark, _ = name.removeprefix("base_model.model.").partition(".lora_")
        if not mark or tensor.ndim != 2:
            continue
        place = place.replace(".base_layer", "")  # of experts: a wrapper around the wrapper of another parameter
        layer = layers.get(place)
        if layer is None:
            raise ModelError(f"the adapter in {folder} belongs to another base: this model has no layer {place}")
        if isinstance(layer, ParamWrapper):
            layer = layer.get_base_layer()
        if fused := [weight for _, weight in layer.named_parameters(recurse=False) if weight.ndim == 3]:
            _check_experts(folder, name, tensor, fused)
            continue
        sizes = (getattr(layer, "in_features", None), getattr(layer, "out_features", None))
        if None in sizes or is_quantized(layer) or ".lora_embedding" in name:
            continue
        if (rank := tensor.shape[0 if ".lora_A" in name else 1]) not in ranks:
            raise ModelError(
                f"{folder / 'adapter_config.json'} says r is {config['r']}, and {name} in the weights has rank {rank}; "
                "take both files from one adapter"
            )
        size, wanted = (tensor.shape[1], sizes[0]) if ".lora_A" in name else (tensor.shape[0], sizes[1])
        if size != wanted:
            raise ModelError(
                f"the adapter in {folder} belongs to another base: {name} is {tuple(tensor.shape)}, and {place} of "
                f"this model has {sizes[0]} inputs and {sizes[1]} outputs"
            )


def _check_experts(folder: Path, name: str, tensor: torch.Tensor, fused: list[torch.nn.Parameter]) -> None:
    """Raises ModelError for a LoRA matrix that fits none of a layer's fused parameters, (E, out, in) or (E, in, out).

    Of E experts of rank R, A is (E·R, in) and B is (out, R·E).
    """
    size, directions = (tensor.shape[1], tensor.shape[0]) if ".lora_A" in name else (tensor.shape[0], tensor.shape[1])
    if not any(size in weight.shape[1:] and directions % weight.shape[0] == 0 for weight in fused):
        shapes = " and ".join(str(tuple(weight.shape)) for weight in fused)
        raise ModelError(
            f"the adapter in {folder} belongs to another base: {name} is {tuple(tensor.shape)}, and the experts of this "
            f"model are {shapes}"
        )
