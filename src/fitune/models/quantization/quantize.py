"""Quantized bases through bitsandbytes: which layers are stored in 8 or 4 bits, and what that costs in size and error.

In: plain values, or a loaded model. Out: transformers' `BitsAndBytesConfig`, and facts about the layers.
Knows nothing of adapters or training.

What is left in the base's own type: embeddings, norms, biases, the output head (a tied head is the embedding itself),
and whatever the user names. PEFT's `prepare_model_for_kbit_training` is not called: it would lift all of these to
fp32, which the frozen ones do not need (norms compute in fp32 inside, the loss lifts its logits itself), and whatever
is trained is lifted where adapters are attached. The memory plan's `kbit_preparation` shows what it would cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from fitune.errors import ModelError, did_you_mean

FOUR_BIT = ("nf4", "fp4")
KINDS = ("none", "int8", *FOUR_BIT)
# bitsandbytes' layers, by the name of their weight's class: its import takes a second and is left to those who need it.
BLOCK = 64  # weights that share a scale in 4 bits, bitsandbytes' default
STORED = {"Int8Params": "int8", "Params4bit": "4-bit"}


@dataclass(frozen=True)
class Quantization:
    """How the linear layers are stored. `unquantized` are endings of names of layers that are left alone."""

    kind: str = "none"
    double_quant: bool = False
    unquantized: tuple[str, ...] = ()

    @property
    def on(self) -> bool:
        """Whether anything is quantized."""
        return self.kind != "none"

    @property
    def name(self) -> str:
        """In words: ``nf4 with double quantization``."""
        return f"{self.kind} with double quantization" if self.double_quant else self.kind

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest and for the adapter's `fitune.json`."""
        return {**asdict(self), "unquantized": list(self.unquantized)}

    @classmethod
    def from_dict(cls, values: dict[str, Any] | None) -> Quantization:
        """What `to_dict` gave; nothing gives no quantization."""
        values = values or {}
        return cls(values.get("kind", "none"), values.get("double_quant", False), tuple(values.get("unquantized", ())))


NO_QUANTIZATION = Quantization()


def bnb_config(
    quantization: Quantization, compute: torch.dtype, skeleton: PreTrainedModel, device: str | int = "cuda"
) -> BitsAndBytesConfig:
    """transformers' own options for a quantization.

    Args:
        compute: type of the products; a 4-bit weight is unpacked into it.
        skeleton: the model on the meta device, asked for its layers' names.
        device: where the weights will lie.

    Raises:
        ModelError: `unquantized` names a layer that the model does not have.
    """
    left = {*_named(skeleton, quantization.unquantized)}
    if device == "cpu" and quantization.kind in FOUR_BIT:
        left |= {*broken_blocks(skeleton)}
    # Naming any layer takes transformers' own exceptions (the head, whatever is tied) away, so they are named as well.
    skipped = sorted({*get_keys_to_not_convert(skeleton), *left})
    return BitsAndBytesConfig(
        load_in_8bit=quantization.kind == "int8",
        load_in_4bit=quantization.kind in FOUR_BIT,
        llm_int8_skip_modules=skipped if left else None,
        bnb_4bit_quant_type=quantization.kind if quantization.kind in FOUR_BIT else "nf4",
        bnb_4bit_use_double_quant=quantization.double_quant,
        bnb_4bit_compute_dtype=compute,
    )


def broken_blocks(model: nn.Module) -> list[str]:
    """Linear layers whose input is no whole number of blocks of 64: bitsandbytes 0.50 unpacks these wrongly on a CPU.

    Its packed values and scales are right, but its CPU kernel begins a new block with each row, so that a weight is off
    by up to its block's largest. Most models have none of these (hidden sizes are multiples of 64).
    """
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D))
    return [name for name, module in linear if _inputs(module) % BLOCK]


def refuse_broken_blocks(model: nn.Module, name: str) -> None:
    """Raises ModelError for a base that came in 4 bits from the disk and that a CPU would compute wrongly."""
    four = {layer for layer in quantized_layers(model) if hasattr(model.get_submodule(layer).weight, "quant_state")}
    if wrong := sorted(four & {*broken_blocks(model)}):
        raise ModelError(
            f"{name} holds {len(wrong)} 4-bit layers whose input size is not a multiple of {BLOCK}, starting with "
            f"{wrong[0]}, which bitsandbytes computes wrongly on a CPU; use a GPU, or the unquantized model"
        )


def only_plain_linear(model: nn.Module) -> bool:
    """Whether transformers' loader knows every linear layer: it takes torch's own class and Conv1D, no class made of it."""
    return all(type(module) is nn.Linear for module in model.modules() if isinstance(module, nn.Linear))


def quantize_in_place(
    model: PreTrainedModel, options: BitsAndBytesConfig, device: str | int, keep_dense: bool = False
) -> dict[str, Tensor]:
    """Store a dense model's linear layers in 8 or 4 bits on `device`, one after another.

    Returns:
        With `keep_dense`: name of each of these layers → the weight that it had, (out, in), where it was.

    For what transformers' own loader cannot quantize while it reads: GGUF files, and models with a linear layer of
    their own class (Falcon's), which transformers 5 passes over and 4 did not; and where the weights are asked for (LoftQ).
    """
    import bitsandbytes

    bnb: Any = bitsandbytes  # without types for what is called here
    skipped = options.llm_int8_skip_modules or get_keys_to_not_convert(model)
    dense: dict[str, Tensor] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear | Conv1D) or not should_convert_module(name, skipped):
            continue
        weight = module.weight.data.T if isinstance(module, Conv1D) else module.weight.data
        outputs, inputs = weight.shape
        if keep_dense:
            dense[name] = weight
        with torch.device("meta"):
            if options.load_in_8bit:
                made: Any = bnb.nn.Linear8bitLt(
                    inputs,
                    outputs,
                    module.bias is not None,
                    has_fp16_weights=False,
                    threshold=options.llm_int8_threshold,
                )
                kept = bnb.nn.Int8Params(weight.contiguous().cpu(), requires_grad=False, has_fp16_weights=False)
            else:
                made = bnb.nn.Linear4bit(inputs, outputs, module.bias is not None, options.bnb_4bit_compute_dtype)
                kept = bnb.nn.Params4bit(
                    weight.contiguous().cpu(),
                    requires_grad=False,
                    compress_statistics=options.bnb_4bit_use_double_quant,
                    quant_type=options.bnb_4bit_quant_type,
                    module=made,
                )
        made.weight = kept.to(device)
        if module.bias is not None:
            made.bias = nn.Parameter(module.bias.data.to(device), requires_grad=False)
        made.source_cls = type(module)
        model.set_submodule(name, made)
    model.to(device)  # type: ignore[arg-type]
    # What PEFT chooses its LoRA layers by.
    model.is_loaded_in_8bit, model.is_loaded_in_4bit = options.load_in_8bit, options.load_in_4bit  # type: ignore
    return dense


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
    """Whether this very module's weight is stored by bitsandbytes in 8 or 4 bits."""
    return type(module._parameters.get("weight")).__name__ in STORED


def quantized_layers(model: nn.Module) -> list[str]:
    """Names of the layers that are stored in 8 or 4 bits."""
    return [name for name, module in model.named_modules() if is_quantized(module)]


def stored_as(model: nn.Module) -> Quantization:
    """The quantization that a loaded model has, `unquantized` left out; read from its first quantized layer."""
    for module in model.modules():
        if is_quantized(module):
            weight: Any = module.weight
            if type(weight).__name__ == "Int8Params":
                return Quantization("int8")
            return Quantization(weight.quant_type, bool(weight.quant_state.nested))
    return NO_QUANTIZATION


def unquantized_layers(model: nn.Module) -> list[str]:
    """Names of the modules with weights of their own (embeddings, norms, head, …) that are stored in the base's type."""
    return [name for name, module in model.named_modules() if module._parameters and not is_quantized(module)]


def refuse_full_tuning(model: nn.Module, name: str) -> None:
    """Raises ModelError for a base that came quantized from the disk: its weights cannot be trained, adapters can."""
    if quantized_layers(model):
        raise ModelError(
            f"{name} holds quantized weights, which cannot be trained, and train.tuning is full; use train.tuning lora "
            "(adapters over the quantized base), or name the unquantized model"
        )


def numel(parameter: Tensor) -> int:
    """Weights in a parameter: two in each byte of a 4-bit one."""
    state = getattr(parameter, "quant_state", None)
    return state.shape.numel() if state is not None else parameter.numel()


def stored_bytes(model: nn.Module) -> int:
    """Bytes of all weights as they are stored, the scales of quantized ones included."""
    total = 0
    for parameter in model.parameters():
        total += parameter.numel() * parameter.element_size()
    for module in model.modules():
        if is_quantized(module):
            total += sum(tensor.numel() * tensor.element_size() for tensor in scales(module))
    return total


def dense_weight(module: Any) -> Tensor:
    """The weights that a quantized layer stands for, (out, in), unpacked; another layer's weight as it is."""
    weight = module.weight
    if type(weight).__name__ == "Params4bit":
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(weight.data, weight.quant_state)
    if type(weight).__name__ == "Int8Params":
        from bitsandbytes.functional import int8_vectorwise_dequant

        rows = module.state.SCB if module.state.SCB is not None else weight.SCB
        return int8_vectorwise_dequant(weight.data, rows)
    return weight.detach()


def describe(model: nn.Module, quantization: Quantization, dtype_name: str, dense_itemsize: int) -> str:
    """One line: how many layers are stored how, the size against the same base without, and what is left out."""
    count, total = len(quantized_layers(model)), sum(numel(parameter) for parameter in model.parameters())
    kinds = sorted({name.split(".")[-1] for name in unquantized_layers(model)})
    how = quantization.name if quantization.on else "8 or 4 bits, as they were published"
    return (
        f"{count} linear layers are stored in {how}: the base takes {stored_bytes(model) / 1e6:,.1f} MB "
        f"instead of {total * dense_itemsize / 1e6:,.1f} MB; {', '.join(kinds)} stay in {dtype_name}"
    )


def _inputs(layer: Any) -> int:
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


def scales(module: Any) -> list[Tensor]:
    """The tensors beside a quantized weight that unpack it."""
    state = getattr(module.weight, "quant_state", None)
    if state is None:
        rows = module.state.SCB if module.state.SCB is not None else module.weight.SCB
        return [] if rows is None else [rows]
    found = [state.absmax, state.code]
    if state.nested:
        found += [state.offset, state.state2.absmax, state.state2.code]
    return found
