"""LoRA on a base model, through PEFT: h = W·x + (alpha/r)·B·A·x (Hu et al. 2021, arXiv 2106.09685, section 4.1)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba  # pyright: ignore[reportPrivateUsage]
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from fitune.adapters.low_rank_start import above_rounding, begin
from fitune.errors import ModelError, did_you_mean
from fitune.models.load_base import input_weight
from fitune.models.mixture.experts import FUSED, PACKED, expert_parameters, is_router
from fitune.models.quantization.nf4 import NF4
from fitune.models.quantization.quantize import is_quantized, kind_of, numel
from fitune.models.quantization.unquantizable import is_own_router
from fitune.models.towers import text_model, tower_names
from fitune.ops.fused_layers import use_lean_layers
from fitune.ops.fused_lora import use_fast_lora, use_fast_quantized_lora
from fitune.ops.trained_tokens import use_trained_tokens

# fitune's word → PEFT's value. debug is PEFT's `False`: A and B both random, so the adapter is not an identity.
# loftq is set by loftq.start_loftq once the adapter is there.
INITS: dict[str, bool | Literal["gaussian", "pissa"]] = {
    "default": True,
    "gaussian": "gaussian",
    "pissa": "pissa",
    "loftq": True,
    "debug": False,
}


def lora_config(
    model: PreTrainedModel,
    *,
    rank: int = 16,
    alpha: float = 32,
    dropout: float = 0.0,
    targets: Sequence[str] | str = "all-linear",
    bias: str = "none",
    rslora: bool = False,
    dora: bool = False,
    modules_to_save: Sequence[str] = (),
    train_norms: bool = False,
    init: str = "default",
    new_token_ids: Sequence[int] = (),
) -> LoraConfig:
    """PEFT's own configuration for fitune's options.

    Args:
        new_token_ids: rows of the embeddings (and of an untied head) that are trained, and no other row of them.

    Raises:
        ModelError: a target or a module to save that the model does not have.
    """
    if dora and init == "pissa":
        raise ModelError("lora.init pissa with lora.dora cannot be saved as an adapter over the base; choose one")
    modules, experts = adapted_names(model, targets)
    if experts:
        _refuse_on_experts(dropout, dora, init)
    left = left_alone(model)
    _check_names("lora.modules_to_save", modules_to_save, {name.split(".")[-1] for name, _ in model.named_modules()})
    ends = {name.split(".")[-1] for name in modules_to_save}
    _refuse_quantized(model, ends, init)
    if dora:
        refuse_dora_on_cpu(model)
    return LoraConfig(
        r=rank,
        lora_alpha=cast(int, alpha),
        lora_dropout=dropout,
        target_modules=modules,
        target_parameters=experts or None,
        exclude_modules="|".join(map(re.escape, left)) or None,
        bias=cast(Literal["none", "all", "lora_only"], bias),
        use_rslora=rslora,
        use_dora=dora,
        modules_to_save=[*modules_to_save, *(norm_names(model) if train_norms else [])] or None,
        init_lora_weights=INITS[init],
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        trainable_token_indices=_token_rows(model, new_token_ids, ends) or None,
        ensure_weight_tying=_ties(model, ends),
        task_type="CAUSAL_LM",
    )


def adapted_names(model: PreTrainedModel, targets: Sequence[str] | str) -> tuple[list[str] | str, list[str]]:
    """(linear layers as PEFT takes them, full names of the fused parameters of experts) that `targets` stands for.

    all-linear is every linear layer and every expert; what chooses the experts is left alone. In a list the experts go by
    the names of their parameters (gate_up_proj, down_proj; experts.down_proj where a linear layer has the name too), or by
    those that they were fused from.

    Raises:
        ModelError: a target that the model does not have.
    """
    experts, linear = list(expert_parameters(model)), linear_names(model)
    if not experts:
        if not isinstance(targets, str):
            _check_names("lora.targets", targets, linear, "linear layers")
        return targets if isinstance(targets, str) else list(targets), []
    taken = _taken_for_experts(model, linear)
    if isinstance(targets, str):
        return sorted(_unrouted(model) - taken), experts
    fused = {name.split(".")[-1] for name in experts}
    _check_names("lora.targets", targets, linear | fused | {old for old in FUSED if FUSED[old] in fused}, "layers")
    modules = [name for name in targets if name.split(".")[-1] in linear - taken and ".experts." not in f".{name}"]
    wanted = tuple(f".{_fused_name(name)}" for name in targets if name not in modules)
    return modules, [name for name in experts if name.endswith(wanted)]


def _fused_name(name: str) -> str:
    """The name of an expert's product as it is today: experts.gate_up_proj of experts.w1."""
    before, dot, last = name.rpartition(".")
    return f"{before}{dot}{FUSED.get(last, last)}"


def _unrouted(model: PreTrainedModel) -> set[str]:
    """As `linear_names`, less the names that routers alone have."""
    head = model.get_output_embeddings()
    return {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and not is_router(name)
        and not name.endswith(PACKED)
    }


def _taken_for_experts(model: PreTrainedModel, names: set[str]) -> set[str]:
    """Names of linear layers that PEFT reads as those of experts, and would not adapt.

    PEFT 0.21 opens adapters of transformers 4, whose experts were linear layers of these names, so that a layer that still
    has one (a shared expert, the dense first layers) cannot be named to it.
    """
    probe = LoraConfig(target_modules=sorted(names), target_parameters=[])
    convert_peft_config_for_transformers(probe, model, None)
    return names - set(cast("set[str]", probe.target_modules))


def _refuse_on_experts(dropout: float, dora: bool, init: str) -> None:
    """Raises ModelError for what PEFT does not compute over a fused parameter."""
    for is_set, what, remedy in (
        (dropout > 0, f"lora.dropout is {dropout:g}", "lora.dropout 0"),
        (dora, "lora.dora is on", "lora.dora false"),
        (init == "pissa", "lora.init is pissa", "lora.init default"),
    ):
        if is_set:
            raise ModelError(
                f"{what}, which PEFT does not compute over this model's experts (they are fused parameters); set {remedy}, "
                "or name linear layers alone in lora.targets, such as q_proj, k_proj, v_proj, o_proj"
            )


def experts_note(model: nn.Module) -> str | None:
    """One line on what of a mixture is adapted; None for a model without experts."""
    experts = expert_parameters(model)
    if not experts:
        return None
    adapted, left = _adapted(model)
    total = sum(numel(parameter) for name, parameter in model.named_parameters() if ".lora_" not in name)
    share = sum(adapted.values()) / total
    own = sum(parameter.numel() for parameter in experts.values()) / total
    if not any(id(parameter) in adapted for parameter in experts.values()):
        return (
            f"the experts, {own:.1%} of the parameters, are not adapted: lora.targets names none of them; LoRA lies over "
            f"{share:.1%} of the parameters"
        )
    beside = f"; {', '.join(left)} of shared experts and dense layers are not adapted beside them" if left else ""
    return f"LoRA lies over {share:.1%} of the parameters, the experts ({own:.1%}) among them{beside}; the router is left alone"


def _adapted(model: nn.Module) -> tuple[dict[int, int], list[str]]:
    """Size of each weight that LoRA lies over, by its id, and the last names of the layers that PEFT would take for experts."""
    found: dict[int, int] = {}
    left: set[str] = set()
    for name, module in model.named_modules():
        last = name.split(".")[-1]
        if isinstance(module, ParamWrapper):
            found[id(module.get_param())] = module.get_param().numel()
        elif isinstance(module, LoraLayer):
            weight = cast(nn.Parameter, cast(Any, module.get_base_layer()).weight)
            found[id(weight)] = numel(weight)
        elif isinstance(module, nn.Linear) and last in (*FUSED, *FUSED.values()):
            left.add(last)
    return found, sorted(left)


def attach(model: PreTrainedModel, config: LoraConfig) -> PeftModel:
    """The base with one fresh adapter: frozen weights keep their type, everything trained is fp32.

    With PiSSA the base is changed as well (it loses its principal part); `save_adapter` turns the result into a
    plain LoRA over the untouched base, for which the initial A and B are kept here.
    """
    dtype = input_weight(model).dtype
    remember_biases(model, config.bias)
    fast = use_fast_lora(config, model)
    adapted = cast(PeftModel, get_peft_model(model, config))
    fuse(adapted, fast)
    cast_trained_to_fp32(adapted)
    compute_in(adapted, dtype)
    if config.init_lora_weights == "pissa":
        _fill_pissa(adapted)
        adapted.fitune_initial = {  # type: ignore[assignment]
            name: parameter.detach().clone() for name, parameter in adapted.named_parameters() if ".lora_" in name
        }
    return adapted


def fuse(model: nn.Module, fast: bool) -> None:
    """Have the model trained by the layers of `fitune.ops`, where it is made of those that they know.

    Args:
        fast: what `use_fast_lora` said before PEFT built the model.
    """
    use_trained_tokens(model)
    if fast or use_fast_quantized_lora(model):
        use_lean_layers(model)


def _fill_pissa(model: PeftModel) -> None:
    """Give each layer as many directions as the rank, all of which can learn.

    PEFT 0.21 gives A and B no more rows and columns than the layer's own rank (an adapter that does not open again
    where the rank is larger), and zeros in both for a singular value of zero, as in a layer that was begun with zeros.
    """
    for module in model.modules():
        layer: Any = module
        if not isinstance(module, LoraLayer) or "default" not in layer.lora_A:
            continue
        a, b = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
        kept = above_rounding(a.norm(dim=1) * b.norm(dim=0), (b.shape[0], a.shape[1]))  # σ/s
        if not kept.all() or len(a) < layer.r["default"]:
            begin(layer, "default", b[:, kept], a[kept])


def cast_trained_to_fp32(model: nn.Module) -> None:
    """fp32 masters of whatever is trained: an update of 1e-5 of a weight is lost in bf16's 8 bits."""
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()


def compute_in(model: PeftModel, dtype: torch.dtype) -> None:
    """Run every forward of the base under autocast when it holds fp32 norms, biases or modules among 16-bit weights.

    A LoRA layer casts its own input, these do not: without autocast, generation (which nobody wraps) would multiply
    fp32 by bf16 and fail. In training the Trainer's own autocast lies around it and nothing changes.
    """
    mixed = any(
        parameter.dtype == torch.float32 and ".lora_" not in name and "trainable_tokens" not in name
        for name, parameter in model.named_parameters()
    )
    base = model.get_base_model()
    if dtype == torch.float32 or not mixed or undo_of(base).hooks:
        return
    for module in base.modules():
        if isinstance(module, nn.LayerNorm):  # on a CPU it takes no 16-bit weight with an fp32 bias or input
            if (weight := next(module.parameters(), None)) is not None:
                undo_of(base).casts.append((module, weight.dtype))
            module.float()
    device, entered = next(model.parameters()).device.type, []
    if device == "meta":  # the memory plan sets autocast itself
        return

    def enter(*_: object) -> None:
        entered.append(torch.autocast(device, dtype=dtype))
        entered[-1].__enter__()

    def leave(*_: object) -> None:
        entered.pop().__exit__(None, None, None)

    undo_of(base).hooks += [
        base.register_forward_pre_hook(enter),
        base.register_forward_hook(leave, always_call=True),
    ]


@dataclass
class Undo:
    """What an adapter changed in the base itself: hooks, types of norms, and biases, which PEFT trains in place."""

    hooks: list[RemovableHandle] = field(default_factory=list["RemovableHandle"])
    casts: list[tuple[nn.Module, torch.dtype]] = field(default_factory=list)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)


def undo_of(base: nn.Module) -> Undo:
    """The base's own list of what to undo, empty at first."""
    if not isinstance(getattr(base, "fitune_undo", None), Undo):
        reset_undo(base)
    return cast(Undo, base.fitune_undo)


def remember_biases(base: nn.Module, bias: str) -> None:
    """Copy the biases that an adapter with ``bias: all`` or ``lora_only`` is about to train in place."""
    if bias != "none":
        held = {name: weight.detach().clone() for name, weight in base.named_parameters() if name.endswith("bias")}
        undo_of(base).biases = {**held, **undo_of(base).biases}


def undo(base: nn.Module) -> None:
    """After PEFT's own `unload`: hooks off, norms and biases as they were."""
    steps = undo_of(base)
    for hook in steps.hooks:
        hook.remove()
    for module, dtype in steps.casts:
        module.to(dtype)
    for name, value in steps.biases.items():
        base.get_parameter(name).data = value.clone()
    reset_undo(base)


def reset_undo(base: nn.Module) -> None:
    """Forget what there was to undo: the base is taken as it is."""
    base.fitune_undo = Undo()  # type: ignore[assignment]


def trained_share(model: nn.Module) -> tuple[int, int]:
    """(parameters that are trained, all parameters); a 4-bit weight counts as one, though two share a byte."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return trained, sum(numel(parameter) for parameter in model.parameters())


def linear_names(model: nn.Module) -> set[str]:
    """Last names of the linear layers, the output head left out, as `all-linear` means them."""
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    left = set(left_alone(model)) if isinstance(model, PreTrainedModel) else set[str]()
    return {
        name.split(".")[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and module is not head
        and name not in left
        and not name.endswith(PACKED)
    }


def left_alone(model: PreTrainedModel) -> list[str]:
    """Full names of linear layers that LoRA does not lie over, whatever is asked for.

    Those of towers, which text does not reach; those that PEFT refuses (the out_proj of Mamba's layers, whose weights a
    kernel reads past the layer); routers that give more than a product.
    """
    towers = tuple(f"{name}." for name in tower_names(model))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (name.startswith(towers) or f"{name}." in towers or _refused_by_peft(model, name) or is_own_router(module))
    ]


def _refused_by_peft(model: PreTrainedModel, name: str) -> bool:
    """PEFT's own answer, which else comes as an error in the middle of `get_peft_model`."""
    try:
        _check_lora_target_modules_mamba(LoraConfig(), model, name.split(".")[-1])
    except ValueError:
        return True
    return False


def norm_names(model: nn.Module) -> list[str]:
    """Last names of the normalisation layers, found by class: torch's own, or a class named …Norm."""
    norms = {
        name.split(".")[-1]
        for name, module in (text_model(model) if isinstance(model, PreTrainedModel) else model).named_modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm) or type(module).__name__.endswith("Norm")
    }
    return sorted(norms)


def embedding_names(model: PreTrainedModel) -> list[str]:
    """Names of the input embedding and of the output head."""
    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [name for name, module in model.named_modules() if any(module is layer for layer in layers)]


def _is_tied(model: PreTrainedModel) -> bool:
    """Whether the head shares the input embedding's weight."""
    head = model.get_output_embeddings()
    return head is not None and head.weight is input_weight(model)


def _ties(model: PreTrainedModel, in_full: set[str]) -> bool:
    """Whether a module trained in full shares its weight with another, which must then go on sharing it.

    Raises:
        ModelError: PEFT cannot keep the two tied, since it knows such an embedding by the name embed_tokens alone.
    """
    names = [name.split(".")[-1] for name in embedding_names(model)]
    shared = _is_tied(model) and sorted(in_full & set(names))
    if shared and "embed_tokens" not in names:
        raise ModelError(
            f"lora.modules_to_save has {', '.join(shared)}, and in this model {' and '.join(names)} are one weight, "
            "which PEFT cannot train in full and keep shared; leave it out"
        )
    return bool(shared)


def _token_rows(model: PreTrainedModel, ids: Sequence[int], in_full: set[str]) -> dict[str, list[int]]:
    """{embedding module: its trained rows}, the head too when it is not tied; less the modules trained `in_full`."""
    names = [name for name in embedding_names(model) if ids]
    if _is_tied(model):
        if in_full & {name.split(".")[-1] for name in names}:
            return {}
        embedding = model.get_input_embeddings()
        names = [name for name in names if model.get_submodule(name) is embedding]
    return {name: list(ids) for name in names if name.split(".")[-1] not in in_full}


def _refuse_quantized(model: PreTrainedModel, in_full: set[str], init: str) -> None:
    """Raises ModelError for what needs weights that can be moved, on a layer that is stored in 8 or 4 bits."""
    stored = {name.split(".")[-1] for name, module in model.named_modules() if is_quantized(module)}
    if named := sorted(in_full & stored):
        raise ModelError(
            f"lora.modules_to_save has {named[0]}, which is quantized and cannot be trained in full; add it to "
            "model.unquantized, or adapt it with LoRA"
        )
    if stored and init == "pissa":
        raise ModelError(
            "lora.init is pissa, which moves a part of each weight into the adapter, and this base is quantized, which "
            "would round the remaining weights again; use loftq, which starts from the error of the quantization"
        )


def refuse_dora_on_cpu(model: nn.Module) -> None:
    """Raises ModelError for DoRA over layers whose quantization does not bear it on a CPU.

    PEFT 0.21 moves an int8 weight to the CPU after unpacking it for DoRA's norm, and bitsandbytes 0.50 then makes a new
    one without its scales: the next forward pass fails.
    """
    for module in model.modules():
        kind = kind_of(module)
        if kind is not None and not kind.dora_on_cpu and cast(nn.Linear, module).weight.device.type == "cpu":
            raise ModelError(
                f"DoRA over an {kind.name} base does not work on a CPU (PEFT and bitsandbytes lose the scales of its "
                f"layers); use model.quantization {NF4.name}, or lora.dora false"
            )


def _check_names(setting: str, names: Sequence[str], known: set[str], what: str = "modules") -> None:
    """Raises ModelError for a name that no module ends with."""
    for name in names:
        if name.split(".")[-1] not in known:
            raise ModelError(
                f'{setting} has "{name}", which this model does not have{did_you_mean(name, known)}; '
                f"its {what} are: {', '.join(sorted(known))}"
            )
