"""The textbook's closed form of a run's memory: a few products of the model's sizes, beside the exact plan.

In: a config's values, a `Scenario`. Out: plain figures, the table that `--explain` prints, and, for a model whose code
cannot be traced, a `Plan` that is made of them and says so. Imports no torch.

L layers, h hidden size, a heads, b rows, s tokens, V vocabulary.

Weights L·12·h² values: four h×h matrices of attention, two h×4h of the feed-forward part. Activations
L·(34·h·b·s + β·a·b·s²) bytes, β = 5 where the scores are held (eager), 0 where they are not: Korthikanti et al.,
"Reducing Activation Recomputation in Large Transformer Models" (arXiv 2205.05198), section 4.1, for 16-bit values; with
checkpointing 2·h·b·s a layer stay (section 5), and one layer is recomputed.

In a mixture the experts take the place of the feed-forward part: 3·h·i values each (gate, up, down; i their inner size),
routed ones and shared ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

from fitune.errors import PlanError
from fitune.models.quantization import QUANTIZATIONS
from fitune.ops.optimizers import PLANNED
from fitune.planning.scenario import PRECISIONS, Scenario

if TYPE_CHECKING:
    from rich.console import Group

    from fitune.planning.gpus.catalogue import Gpu
    from fitune.planning.predict import Card, Plan

CUBLAS_BYTES = 8 * 2**20
NAMES = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocabulary": ("vocab_size",),
}


@dataclass(frozen=True)
class Sizes:
    """What the closed form knows of a model."""

    layers: int
    hidden: int
    heads: int
    vocabulary: int
    experts: Experts | None = None


@dataclass(frozen=True)
class Experts:
    """The feed-forward part of a mixture.

    Attributes:
        layers: layers that have experts.
        routed: experts of such a layer among which the router chooses.
        inner: their inner size.
        shared: inner size of all shared experts of a layer together.
        dense: inner size of the feed-forward part of the other layers.
    """

    layers: int
    routed: int
    inner: int
    shared: int
    dense: int

    def routed_values(self, hidden: int) -> int:
        """Values of all routed experts."""
        return self.layers * self.routed * 3 * hidden * self.inner

    def beside_values(self, layers: int, hidden: int) -> int:
        """Values of shared experts, and of the dense layers' feed-forward parts."""
        return 3 * hidden * (self.layers * self.shared + (layers - self.layers) * self.dense)


def experts_of(values: Mapping[str, object], layers: int) -> Experts | None:
    """The experts in a config, under the names that families give them; None for a model without."""

    def first(*names: str) -> int:
        found = (values.get(name) for name in names)
        return next((int(value) for value in found if isinstance(value, int | float) and value), 0)

    routed = first("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    if routed < 2:
        return None
    dense = first("intermediate_size", "ffn_hidden_size")
    inner = first("moe_intermediate_size", "expert_intermediate_size") or dense
    shared = first("shared_expert_intermediate_size", "shared_intermediate_size")
    shared = shared or inner * first("n_shared_experts", "num_shared_experts", "moe_num_shared_experts")
    without = first("first_k_dense_replace") or len(cast("list[int]", values.get("mlp_only_layers") or ()))
    return Experts(
        layers=(layers - without) // (first("decoder_sparse_step") or 1),
        routed=routed,
        inner=inner,
        shared=shared,
        dense=dense,
    )


def sizes_of(values: Mapping[str, object]) -> Sizes:
    """The sizes in a config, under the names that families give them.

    Raises:
        PlanError: one of them is not there.
    """
    found: dict[str, int] = {}
    for size, names in NAMES.items():
        places = (values, cast("Mapping[str, object]", values.get("text_config") or {}))
        found[size] = next(
            (int(cast("float | str", place[name])) for place in places for name in names if place.get(name)), 0
        )
        if not found[size]:
            raise PlanError(f"the config has no {names[0]}, which the closed form needs; write it into the config.json")
    text = cast("Mapping[str, object]", values.get("text_config") or values)
    return Sizes(**found, experts=experts_of(text, found["layers"]))


def weight_values(layers: int, hidden: int) -> int:
    """L·12·h²: values in the layers; embeddings and head not counted."""
    return layers * 12 * hidden**2


def layer_values(model: Sizes) -> int:
    """Values in the layers, those of experts among them."""
    L, h = model.layers, model.hidden
    if model.experts is None:
        return weight_values(L, h)
    return L * 4 * h**2 + model.experts.routed_values(h) + model.experts.beside_values(L, h)


def activation_bytes(layers: int, hidden: int, heads: int, batch: int, tokens: int, eager: bool) -> int:
    """L·(34·h·b·s + β·a·b·s²), for 16-bit values."""
    return layers * (34 * hidden * batch * tokens + (5 if eager else 0) * heads * batch * tokens**2)


def activation_ratio(
    hidden: int, heads: int, tokens: int, eager: bool, compute_bytes: float = 2, model_bytes: float = 2
) -> float:
    """Activations over weights of one row, about (3·s/h + ½·a·(s/h)²)·p_comp/p_model.

    34/12 is taken for 3 and 5/12 for ½. With p_model in bytes a value, p_comp is 1 for 16-bit activations (the 34 and the
    5 are bytes already), so ``compute_bytes`` is halved here.
    """
    share = tokens / hidden
    return (3 * share + (0.5 * heads * share**2 if eager else 0)) * (compute_bytes / 2) / model_bytes


def lora_values(layers: int, hidden: int, rank: int) -> int:
    """L·18·r·h: two factors beside each of the four h×h matrices (2·r·h) and the two h×4h ones (5·r·h)."""
    return layers * 18 * rank * hidden


def adapter_values(model: Sizes, rank: int) -> int:
    """As `lora_values`; in a mixture beside the four h×h matrices and the fused products of each routed expert."""
    if model.experts is None:
        return lora_values(model.layers, model.hidden, rank)
    h, i = model.hidden, model.experts.inner
    return rank * (model.layers * 8 * h + model.experts.layers * model.experts.routed * (2 * h + 3 * i))


def stored_bytes(scenario: Scenario, hidden: int) -> float:
    """Bytes of a weight of the layers, its share of the scales among them, in rows of h."""
    if scenario.quantized:
        return QUANTIZATIONS[scenario.weights].bits_per_weight(hidden, scenario.double_quant) / 8
    return PRECISIONS[scenario.weights]


class ClosedForm(TypedDict):
    """What `closed_form` gives: the model's sizes, values and bytes."""

    layers: int
    hidden_size: int
    heads: int
    vocabulary: int
    batch: int
    tokens: int
    beta: int
    weight_values: int
    trained_values: int
    parts: dict[str, int]
    total_bytes: int
    activations_over_weights: float


class Compared(TypedDict):
    """A part of the memory by the closed form and exactly, in bytes, and why the two part."""

    part: str
    closed: int
    exact: int
    why: str


def closed_form(values: Mapping[str, object], scenario: Scenario) -> ClosedForm:
    """Figures of the closed form, in bytes unless the name says otherwise.

    Raises:
        PlanError: the config does not tell the sizes.
    """
    model = sizes_of(values)
    L, h, a = model.layers, model.hidden, model.heads
    batch, tokens, eager = scenario.batch, scenario.seq_len, scenario.attention == "eager"
    wide = 2 if (scenario.autocast == "none" and scenario.weights == "fp32") else 1
    count, lora = layer_values(model), scenario.tuning == "lora"
    trained = adapter_values(model, scenario.rank) if lora else count
    each = PRECISIONS["fp32" if scenario.trained_dtype == "fp32" else scenario.dense_type]
    stored = stored_bytes(scenario, h)
    linear = wide * activation_bytes(L, h, a, batch, tokens, False)
    scores = wide * activation_bytes(L, h, a, batch, tokens, eager) - linear
    if scenario.gradient_checkpointing:
        kept = wide * L * 2 * h * batch * tokens
        linear, scores = kept + linear // L, scores // L
    parts = {
        "weights": round(count * stored),
        "adapters": round(trained * each) if lora else 0,
        "gradients": round(trained * each),
        "optimizer states": round(trained * PLANNED[scenario.optimizer].bytes_per_value(each)),
        "activations": linear,
        "attention": scores,
    }  # fmt: skip
    return {
        "layers": L,
        "hidden_size": h,
        "heads": a,
        "vocabulary": model.vocabulary,
        "batch": batch,
        "tokens": tokens,
        "beta": 5 if eager else 0,
        "weight_values": count,
        "trained_values": trained,
        "parts": {name: size for name, size in parts.items() if size},
        "total_bytes": sum(parts.values()),
        "activations_over_weights": activation_ratio(h, a, tokens, eager, 2 * wide, stored),
    }


# Part → the exact plan's parts that it stands beside, and where the two part.
BESIDE: dict[str, tuple[tuple[str, ...], str]] = {
    "weights": (("weights", "fp32 copies"), "12·h² a layer: no embeddings, no head, no shared keys, no gated feed-forward"),
    "adapters": (("adapters",), "18·r·h a layer: as for square attention and a feed-forward part of 4·h"),
    "gradients": (("gradients",), "all at once; exact: those that are there at the moment of the peak"),
    "optimizer states": (("optimizer states", "optimizer temporaries"), "two values for each trained one"),
    "activations": (
        ("activations", "activation gradients"),
        "34·h·b·s a layer is GPT's layer with dropout, fully trained; what LoRA or a frozen base need not keep is in it",
    ),
    "attention": (("attention",), "5·heads·b·s² a layer where the scores are held, nothing where they are not"),
    "logits and loss": (("logits and loss",), "not in the closed form"),
    "dequantization buffers": (("dequantization buffers",), "not in the closed form"),
    "workspace": (("workspace", "kernel workspace"), "not in the closed form"),
}  # fmt: skip


def explain(made: Plan, explained: ClosedForm) -> Group:
    """A table for the terminal: part by part, closed form beside exact.

    Args:
        made: the exact plan of the same question.
        explained: what `closed_form` gave.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from fitune.sizes import size_in

    whole = max(made.allocated_peak_bytes, explained["total_bytes"])
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name in ("part", "closed form", "exact", "closed/exact", "where they part"):
        right = name in ("closed form", "exact", "closed/exact")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "where they part")
    for row in compared(made, explained):
        share = f"{row['closed'] / row['exact']:.2f}" if row["closed"] and row["exact"] else "–"
        table.add_row(row["part"], size_in(row["closed"], whole), size_in(row["exact"], whole), share, row["why"])
    share = explained["total_bytes"] / max(made.allocated_peak_bytes, 1)
    total, exact = size_in(explained["total_bytes"], whole), size_in(made.allocated_peak_bytes, whole)
    table.add_section()
    table.add_row("allocated", total, exact, f"{share:.2f}", "")
    model = (
        f"L {explained['layers']}, h {explained['hidden_size']:,}, heads {explained['heads']}, b {explained['batch']}, "
        f"s {explained['tokens']:,}, β {explained['beta']}"
    )
    lines = [
        f"the closed form: weights L·12·h², activations L·(34·h·b·s + β·heads·b·s²); {model}",
        f"values in the layers: {explained['weight_values']:,} by the closed form, {made.total_parameters:,} parameters "
        "in the model with embeddings and head",
        "activations over weights, one row: about (3·s/h + ½·heads·(s/h)²)·p_comp/p_model = "
        f"{explained['activations_over_weights']:.2f}",
    ]
    return Group(Text(lines[0]), table, *(Text(line) for line in lines[1:]))


def compared(made: Plan, explained: ClosedForm) -> list[Compared]:
    """Rows of the comparison: part, closed, exact (bytes), why; they cover the whole of the exact peak."""
    rows: list[Compared] = []
    left = dict(made.parts)
    for part, (beside, why) in BESIDE.items():
        exact = sum(left.pop(name, 0) for name in beside)
        closed = explained["parts"].get(part, 0)
        if exact or closed:
            rows.append({"part": part, "closed": closed, "exact": exact, "why": why})
    if left:
        rows.append({"part": "the rest", "closed": 0, "exact": sum(left.values()), "why": "not in the closed form"})
    return rows


def untraced_plan(values: Mapping[str, object], scenario: Scenario, gpu: Card | Gpu, reason: str) -> Plan:
    """A plan by the closed form alone, with embeddings, head and logits added; it says what it is.

    Args:
        reason: why the model's code could not be traced.

    Raises:
        PlanError: the config does not even tell the sizes; the reason is in the message too.
    """
    from fitune.planning.predict import Plan

    try:
        found = closed_form(values, scenario)
    except PlanError as error:
        raise PlanError(f"{reason}; and {error}") from error
    parts = dict(found["parts"])
    tied = 1 if values.get("tie_word_embeddings") else 2
    beside = tied * found["vocabulary"] * found["hidden_size"]
    # Embeddings and head stay in 16 bits when the layers are quantized.
    each = 2 if scenario.quantized else PRECISIONS[scenario.weights]
    parts["weights"] += round(beside * each)
    trained = found["trained_values"]
    if scenario.tuning == "full":
        trained += beside
        for name in ("gradients", "optimizer states"):
            parts[name] = round(parts.get(name, 0) * trained / found["trained_values"])
    selected = max(round(scenario.label_share * scenario.seq_len), 1) * scenario.batch
    positions = selected if scenario.loss == "labels" else scenario.batch * scenario.seq_len
    # Logits in 16 bits, their fp32 copy, and the gradient of each.
    parts["logits and loss"] = positions * found["vocabulary"] * 12
    parts["workspace"] = CUBLAS_BYTES
    peak = sum(parts.values())
    smi = peak + gpu.context_bytes
    moment = "step 2 (the closed form knows no nearer moment)"
    phase: dict[str, int | str] = {
        "allocated_bytes": peak, "reserved_bytes": peak, "smi_bytes": smi, "moment": moment,
    }  # fmt: skip
    return Plan(
        allocated_peak_bytes=peak,
        reserved_peak_bytes=peak,
        smi_peak_bytes=smi,
        parts=dict(sorted(parts.items(), key=lambda item: -item[1])),
        moment=moment,
        phases={"step 2": phase},
        fits=False,
        trained_parameters=trained,
        total_parameters=found["weight_values"] + beside + (trained if scenario.tuning == "lora" else 0),
        traced=False,
        notes=(
            f"BY THE CLOSED FORM ONLY, NOT TRACED: {reason}",
            "the closed form takes a GPT-like layer for this model's and knows no fragmentation: it may be off by half, so it "
            "gives no verdict; evaluation and generation are not in it",
        ),
    )
