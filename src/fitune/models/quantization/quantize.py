"""Quantized bases: which layers are stored in few bits, and what that costs in size and error.

In: plain values, or a loaded model. Out: layers in few bits, and facts about them. How one layer is packed and unpacked
its quantization knows (`QUANTIZATIONS`). Knows nothing of adapters or training.

What is left in the base's own type: embeddings, norms, biases, the output head (a tied head is the embedding itself),
and whatever the user names. PEFT's `prepare_model_for_kbit_training` is not called: it would lift all of these to
fp32, which the frozen ones do not need (norms compute in fp32 inside, the loss lifts its logits itself), and whatever
is trained is lifted where adapters are attached. The memory plan's `kbit_preparation` shows what it would cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from fitune.errors import ModelError, did_you_mean
from fitune.models.mixture.experts import expert_parameters, is_placeholder
from fitune.models.mixture.packed_experts import Packing, pack_experts
from fitune.models.quantization import QUANTIZATIONS
from fitune.models.quantization.quantization import Layer, Quantization
from fitune.models.quantization.unquantizable import unquantizable_layers


@dataclass(frozen=True)
class QuantizationConfig:
    """How the linear layers are stored. `unquantized` are endings of names of layers that are left alone."""

    kind: str = "none"
    double_quant: bool = False
    unquantized: tuple[str, ...] = ()

    @property
    def on(self) -> bool:
        """Whether anything is quantized."""
        return self.kind != "none"

    @property
    def facts(self) -> Quantization:
        """Those of its kind.

        Raises:
            ModelError: nobody knows the kind, as in an adapter of a later version.
        """
        if self.kind not in QUANTIZATIONS:
            raise ModelError(
                f'there is no quantization "{self.kind}"{did_you_mean(self.kind, QUANTIZATIONS)}; '
                f"use one of none, {', '.join(QUANTIZATIONS)}"
            )
        return QUANTIZATIONS[self.kind]

    @property
    def name(self) -> str:
        """In words: ``nf4 with double quantization``."""
        return f"{self.kind} with double quantization" if self.double_quant else self.kind

    def to_dict(self) -> dict[str, object]:
        """Plain values for the manifest and for the adapter's `fitune.json`."""
        return {"kind": self.kind, "double_quant": self.double_quant, "unquantized": list(self.unquantized)}

    @classmethod
    def from_dict(cls, values: Mapping[str, object] | None) -> QuantizationConfig:
        """What `to_dict` gave; nothing gives no quantization."""
        values = values or {}
        unquantized = cast("Sequence[str]", values.get("unquantized", ()))
        return cls(str(values.get("kind", "none")), bool(values.get("double_quant", False)), tuple(unquantized))


NO_QUANTIZATION = QuantizationConfig()


def unquantized_on(skeleton: PreTrainedModel, quantization: QuantizationConfig, device: str | int) -> list[str]:
    """Names of the linear layers that stay in the base's type beside those that transformers leaves itself.

    Args:
        skeleton: the model on the meta device, asked for its layers' names.
        device: where the weights will lie.

    Raises:
        ModelError: `unquantized` names a layer that the model does not have.
    """
    left = {*_named(skeleton, quantization.unquantized), *unquantizable_layers(skeleton)}
    if device == "cpu":
        left |= {*broken_on_cpu(skeleton, quantization.facts)}
    return sorted(left)


def bnb_config(
    quantization: QuantizationConfig, compute: torch.dtype, skeleton: PreTrainedModel, device: str | int = "cuda"
) -> BitsAndBytesConfig:
    """transformers' own options for a quantization that bitsandbytes has.

    Args:
        compute: type of the products; a 4-bit weight is unpacked into it.
        skeleton, device: as in `unquantized_on`.

    Raises:
        ModelError: as `unquantized_on`.
    """
    left = unquantized_on(skeleton, quantization, device)
    # Naming any layer takes transformers' own exceptions (the head, whatever is tied) away, so they are named as well.
    skipped = sorted({*get_keys_to_not_convert(skeleton), *left})
    options: dict[str, Any] = {
        "llm_int8_skip_modules": skipped if left else None,
        "bnb_4bit_use_double_quant": quantization.double_quant,
        "bnb_4bit_compute_dtype": compute,
    }
    options |= quantization.facts.loader
    return BitsAndBytesConfig(**options)


def broken_on_cpu(model: nn.Module, kind: Quantization) -> list[str]:
    """Linear layers that a CPU would compute wrongly in this quantization."""
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return [name for name, module in linear if _inputs(module) % kind.cpu_inputs]


def refuse_on_cpu(model: nn.Module, name: str) -> None:
    """Raises ModelError for a base that came quantized from the disk and that a CPU would compute wrongly."""
    layers = {layer: model.get_submodule(layer) for layer in quantized_layers(model)}
    wrong = [
        layer
        for layer, module in layers.items()
        if _inputs(cast("nn.Linear | Conv1D", module)) % _kind_of(module).cpu_inputs
    ]
    if wrong:
        kind = _kind_of(layers[wrong[0]])
        raise ModelError(
            f"{name} holds {len(wrong)} {kind.bits}-bit layers whose input size is not a multiple of {kind.cpu_inputs}, "
            f"{wrong[0]} first, which bitsandbytes computes wrongly on a CPU; use a GPU, or the unquantized model"
        )


def only_plain_linear(model: nn.Module) -> bool:
    """Whether transformers' loader knows every linear layer: it takes torch's own class and Conv1D, no class made of it."""
    return all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear))


def quantize_in_place(
    model: PreTrainedModel,
    quantization: QuantizationConfig,
    compute: torch.dtype,
    device: str | int,
    keep_dense: bool = False,
) -> dict[str, Tensor]:
    """Store a dense model's linear layers in few bits on `device`, one after another.

    Returns:
        With `keep_dense`: name of each of these layers → the weight that it had, (out, in), where it was.

    For what transformers' own loader cannot quantize while it reads: quantizations that it does not have, GGUF files,
    and models with a linear layer of their own class (Falcon's), which transformers 5 passes over and 4 did not; and where
    the weights are asked for (LoftQ).
    """
    kind = quantization.facts
    dense: dict[str, Tensor] = {}
    for name in layers_to_pack(model, quantization, device):
        module = cast("nn.Linear | Conv1D", model.get_submodule(name))
        weight = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
        if keep_dense:
            dense[name] = weight
        made: Any = empty_layer(module, quantization, compute)
        made.weight = kind.pack(weight.contiguous().cpu(), made, device)
        if made.bias is not None:
            made.bias = nn.Parameter(module.bias.data.to(device), requires_grad=False)
        model.set_submodule(name, made)
    pack_experts(model, Packing(kind, compute, quantization.double_quant), device)
    model.to(device)  # type: ignore[arg-type]
    tell_peft(model, kind)
    return dense


def layers_to_pack(model: PreTrainedModel, quantization: QuantizationConfig, device: str | int) -> list[str]:
    """Names of the linear layers that are stored in few bits, in the model's order."""
    skipped = [*get_keys_to_not_convert(model), *unquantized_on(model, quantization, device)]
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and should_convert_module(name, skipped)
    ]


def empty_layer(module: nn.Module, quantization: QuantizationConfig, compute: torch.dtype) -> nn.Module:
    """The layer on meta that takes a linear one's place, its bias among it."""
    linear = cast("nn.Linear | Conv1D", module)
    transposed = isinstance(linear, Conv1D)
    outputs, inputs = linear.weight.T.shape if transposed else linear.weight.shape
    bias = cast("nn.Parameter | None", linear.bias)
    layer = Layer(
        inputs=inputs, outputs=outputs, bias=bias is not None, compute=compute, double_quant=quantization.double_quant
    )
    with torch.device("meta"):
        made: Any = quantization.facts.make_layer(layer)
    made.requires_grad_(False)
    if bias is not None:
        made.bias = nn.Parameter(bias.data, requires_grad=False)
    made.source_cls, made.source_is_transposed = type(module), transposed
    return made


def tell_peft(model: nn.Module, kind: Quantization) -> None:
    """Set what PEFT chooses its LoRA layers by, as transformers' loader does."""
    marked: Any = model  # the names are no module's
    marked.is_loaded_in_8bit = bool(kind.loader.get("load_in_8bit"))
    marked.is_loaded_in_4bit = bool(kind.loader.get("load_in_4bit"))


def keep_standard_layout(model: nn.Module) -> None:
    """Leave 4-bit weights as they are stored, on CPUs with AVX512-BF16 too.

    bitsandbytes 0.50 repacks them for a fused kernel at the first forward pass in eval mode (its pull request 1804).
    That kernel has no backward pass, the scales are rounded to bf16, and PEFT, which reads the weights to merge an
    adapter, does not know the layout: after one evaluation a run would train nothing below the last layer. The switch
    is an attribute of each layer; this goes when bitsandbytes unpacks for training.
    """
    layers: list[Any] = list(model.modules())
    for module in layers:
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def is_quantized(module: nn.Module) -> bool:
    """Whether this very module's weight is stored in few bits."""
    return kind_of(module) is not None


def kind_of(module: nn.Module) -> Quantization | None:
    """The quantization of this very module's weight; None for one in its own type."""
    return next((kind for kind in QUANTIZATIONS.values() if kind.holds(module)), None)


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the layers that are stored in few bits."""
    return [name for name, module in model.named_modules() if is_quantized(module)]


def stored_as(model: nn.Module) -> QuantizationConfig:
    """The quantization that a loaded model has, `unquantized` left out; read from its first quantized layer."""
    for module in model.modules():
        if (kind := kind_of(module)) is not None:
            return QuantizationConfig(kind.name, bool(getattr(kind.state(module), "nested", False)))
    return NO_QUANTIZATION


def unquantized_layers(model: nn.Module) -> list[str]:
    """Names of the modules with weights of their own (embeddings, norms, head, …) that are stored in the base's type."""
    return [
        name
        for name, module in model.named_modules()
        if any(not is_placeholder(parameter) for parameter in module.parameters(recurse=False))
        and not is_quantized(module)
    ]


def refuse_full_tuning(model: nn.Module, name: str) -> None:
    """Raises ModelError for a base that came quantized from the disk: its weights cannot be trained, adapters can."""
    if quantized_layers(model):
        raise ModelError(
            f"{name} holds quantized weights, which cannot be trained, and train.tuning is full; use train.tuning lora "
            "(adapters over the quantized base), or name the unquantized model"
        )


def numel(parameter: Tensor) -> int:
    """Weights in a parameter: two in each byte of a 4-bit one, none in what stands for packed experts."""
    if is_placeholder(parameter):
        return 0
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all weights as they are stored, the scales of quantized ones included."""
    total = 0
    for parameter in model.parameters():
        total += 0 if is_placeholder(parameter) else parameter.numel() * parameter.element_size()
    for module in model.modules():
        if is_quantized(module):
            total += sum(tensor.numel() * tensor.element_size() for tensor in scales(module))
    return total


def dense_weight(module: nn.Module) -> Tensor:
    """The weights that a quantized layer stands for, (out, in), unpacked; another layer's weight as it is."""
    kind = kind_of(module)
    if kind is None:
        return cast(Tensor, module.weight).detach()
    weight = cast(Tensor, module.weight)
    return kind.unpack(weight.data, kind.state(module))


def describe(model: nn.Module, quantization: QuantizationConfig, dtype_name: str, dense_itemsize: int) -> str:
    """One line: how many layers are stored how, the size against the same base without, and what is left out."""
    count, total = len(quantized_layers(model)), sum(numel(parameter) for parameter in model.parameters())
    kinds = sorted({name.split(".")[-1] for name in unquantized_layers(model)})
    how = quantization.name if quantization.on else "8 or 4 bits, as they were published"
    return (
        f"{count} linear layers are stored in {how}: the base takes {stored_bytes(model) / 1e6:,.1f} MB "
        f"instead of {total * dense_itemsize / 1e6:,.1f} MB; {', '.join(kinds)} stay in {dtype_name}"
    )


def experts_left(model: nn.Module, dtype_name: str) -> str | None:
    """One line on the experts of a quantized base that stay in 16 bits; None where there are none.

    bitsandbytes 0.50 quantizes linear layers, and transformers 5 keeps experts as fused 3-D parameters; those that its
    interface for experts does not compute are not packed by `pack_experts` either.
    """
    kept = sum(parameter.nbytes for parameter in expert_parameters(model).values() if not is_placeholder(parameter))
    if not kept:
        return None
    size = f"{kept / 1e9:,.1f} GB" if kept >= 1e9 else f"{kept / 1e6:,.1f} MB"
    return (
        f"the experts, {size} of the base, stay in {dtype_name}: bitsandbytes quantizes linear layers, and experts are "
        "fused parameters"
    )


def _inputs(layer: nn.Linear | Conv1D) -> int:
    """Input features of a linear layer; Conv1D stores its weight the other way round."""
    return layer.nx if isinstance(layer, Conv1D) else layer.in_features


def _named(model: nn.Module, endings: Sequence[str]) -> list[str]:
    """Full names of the linear layers with these endings."""
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    found: list[str] = []
    for ending in endings:
        matching = [name for name in linear if name == ending or name.endswith(f".{ending}")]
        if not matching:
            known = sorted({name.split(".")[-1] for name in linear})
            raise ModelError(
                f'model.unquantized has "{ending}", which this model does not have{did_you_mean(ending, known)}; '
                f"its linear layers are: {', '.join(known)}"
            )
        found += matching
    return found


def scales(module: nn.Module) -> list[Tensor]:
    """The tensors beside a quantized weight that unpack it."""
    kind = _kind_of(module)
    return kind.scales(kind.state(module))


def _kind_of(module: nn.Module) -> Quantization:
    """The quantization of a layer that has one."""
    kind = kind_of(module)
    assert kind is not None
    return kind
