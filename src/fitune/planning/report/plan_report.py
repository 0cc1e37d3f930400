"""A plan made ready to be shown: its verdict, its three figures, the pieces of its bar, its question in words.

In: a `Plan`, its scenario and its card. Out: texts and `Layer`s that the terminal (render.py), the picture
(picture.py) and JSON share. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

from fitune.models.quantization.nf4 import NF4
from fitune.planning.predict import Plan
from fitune.planning.scenario import Scenario
from fitune.sizes import size_in

# Part → (letter in a bar without colour, colour, what it is), in the order of the bar: what stays, what comes with the
# batch, what the machine adds. Blues and greens stay, warm colours come and go, greys are overhead.
LOOKS: dict[str, tuple[str, str, str]] = {
    "weights": ("W", "#1f5fa8", "the base, as it is stored"),
    "adapters": ("L", "#4f9bd9", "LoRA's matrices"),
    "fp32 copies": ("F", "#8cc1e8", "values lifted to fp32"),
    "gathered layers": ("Y", "#a9d3f0", "of all ranks' pieces, while they are computed"),
    "gradients": ("G", "#1b8a7a", "of what is trained"),
    "reduced gradients": ("R", "#7fb8ad", "of one layer, on their way to the ranks"),
    "optimizer states": ("S", "#6cc3a0", "kept from the first step on"),
    "activations": ("A", "#d9581e", "kept for the backward pass"),
    "attention": ("T", "#f0a030", "scores and what the kernel keeps"),
    "logits and loss": ("H", "#b8336a", "the output head's side"),
    "activation gradients": ("B", "#e8899a", "of the backward pass"),
    "dequantization buffers": ("D", "#8a5fb0", "16-bit copies of quantized weights"),
    "optimizer temporaries": ("O", "#b9a3d6", "while the optimizer steps"),
    "kernel workspace": ("K", "#6b7280", "scratch memory of kernels"),
    "workspace": ("U", "#9097a1", "cuBLAS"),
    "fragmentation": ("f", "#b5bac1", "reserved, and not allocated at the peak"),
    "paged states": ("P", "#c9ccd1", "managed memory; the driver moves it to the host when the card is full"),
    "CUDA context": ("x", "#d8dade", "driver and kernels"),
}
UNKNOWN = ("?", "#555555", "")
FREE = "#eceef0"
UNFUSED = (
    "the fused layers, which keep fewer activations, take 16- and 32-bit bases only; over a quantized base PEFT's own layers "
    "run, and without gradient checkpointing their activations can outweigh what quantization saves"
)


@dataclass(frozen=True)
class View:
    """All that is shown of one plan."""

    model: str
    question: str
    """What would be trained, in a line."""
    plan: Plan
    card: str | None
    """Name of the card or budget; None when there is none: no verdict then."""
    usable_bytes: int | None
    context_bytes: int
    expandable_segments: bool = False
    notes: tuple[str, ...] = ()

    @property
    def spare_bytes(self) -> int | None:
        """What is left on the card; negative is missing."""
        return None if self.usable_bytes is None else self.usable_bytes - self.plan.smi_peak_bytes


@dataclass(frozen=True)
class Layer:
    """One piece of the bar; all pieces sum to what nvidia-smi shows."""

    name: str
    num_bytes: int
    letter: str
    colour: str
    about: str


def layers(plan: Plan, context_bytes: int) -> list[Layer]:
    """Parts of the allocated peak, then what lies between it and the reserved figure, and nvidia-smi's."""
    order = {name: place for place, name in enumerate(LOOKS)}
    sizes = dict(sorted(plan.parts.items(), key=lambda item: order.get(item[0], len(order))))
    sizes["fragmentation"] = plan.reserved_peak_bytes - plan.allocated_peak_bytes
    sizes["paged states"] = plan.smi_peak_bytes - plan.reserved_peak_bytes - context_bytes
    sizes["CUDA context"] = context_bytes
    return [_layer(name, size) for name, size in sizes.items() if size > 0]


def _layer(name: str, num_bytes: int) -> Layer:
    letter, colour, about = LOOKS.get(name, UNKNOWN)
    return Layer(name=name, num_bytes=num_bytes, letter=letter, colour=colour, about=about)


def scale(view: View) -> int:
    """The figure that chooses the unit, and the bar's whole width."""
    return max(view.plan.smi_peak_bytes, view.usable_bytes or 0)


def verdict(view: View) -> str:
    """The first line: does it fit, and by how much."""
    said = _verdict(view)
    return said if view.plan.traced else f"by the closed form only, not traced: {said}"


def _verdict(view: View) -> str:
    plan, whole = view.plan, scale(view)
    needs = size_in(plan.smi_peak_bytes, whole)
    if view.card is None or view.usable_bytes is None or view.spare_bytes is None:
        return f"needs {needs}; no GPU here and none named, so no verdict (--gpu NAME or --budget 16GiB)"
    usable = size_in(view.usable_bytes, whole)
    if not plan.traced:
        return f"no verdict for {view.card}: about {needs} of {usable}, which may be off by half"
    if plan.fits and view.spare_bytes >= 0:
        return f"fits {view.card}: needs {needs} of {usable}, {size_in(view.spare_bytes, whole)} to spare"
    if plan.fits:
        return f"fits {view.card}, only just: {usable}, and the allocator has to give cached memory back on the way"
    return f"does not fit {view.card}: needs {needs}, has {usable}, {size_in(-view.spare_bytes, whole)} too much"


def advice(view: View) -> list[str]:
    """Why nothing but a smaller or quantized model can fit, where that is so."""
    if view.usable_bytes is None or view.plan.fits or not view.plan.traced:
        return []
    load = view.plan.phases.get("load")
    if load is None or float(load["smi_bytes"]) <= view.usable_bytes:
        return []
    least = size_in(float(load["smi_bytes"]), scale(view))
    return [
        f"not even the loaded model fits: weights and CUDA context take {least} before the first step. Use a smaller "
        f"model or stronger quantization (--model.quantization {NF4.name})"
    ]


def figures(view: View) -> list[tuple[str, str, str]]:
    """(name, size, what it is) of the three figures, which are never mixed."""
    plan, whole = view.plan, scale(view)
    beside = "CUDA context" + (" + paged states" if _paged_bytes(view) else "")
    return [
        (
            "allocated",
            size_in(plan.allocated_peak_bytes, whole),
            "tensors alive together: torch's max_memory_allocated",
        ),
        ("reserved", size_in(plan.reserved_peak_bytes, whole), "held by torch's allocator: max_memory_reserved"),
        ("nvidia-smi", size_in(plan.smi_peak_bytes, whole), f"the whole process: reserved + {beside}"),
    ]


def facts(view: View) -> list[str]:
    """Trained share and the time of a step, where known."""
    plan, found = view.plan, list[str]()
    if plan.total_parameters:
        share = plan.trained_parameters / plan.total_parameters
        found.append(f"trained: {plan.trained_parameters:,} of {plan.total_parameters:,} parameters ({share:.2%})")
    if plan.host_bytes:
        found.append(f"host: {size_in(plan.host_bytes, plan.host_bytes)} of pinned memory for layer inputs")
    if plan.seconds_per_step is not None:
        found.append(f"time: about {seconds(plan.seconds_per_step)} an optimizer step (an estimate, to rank by)")
    return found


def describe(scenario: Scenario) -> str:
    """What is trained, in a line."""
    weights = f"{scenario.weights} weights"
    if scenario.tuning == "lora":
        targets = "all linear layers" if isinstance(scenario.targets, str) else ", ".join(scenario.targets)
        tuning = f"{'DoRA' if scenario.dora else 'LoRA'} rank {scenario.rank} on {targets}"
    else:
        tuning = "full fine-tuning" + (f", first {scenario.frozen_layers} layers frozen" * bool(scenario.frozen_layers))
    parts = [
        weights,
        tuning,
        scenario.optimizer,
        "packed attention" if scenario.rows == "packed" else f"attention {scenario.attention}",
    ]
    parts += [f"{scenario.autocast} autocast"] if scenario.autocast != "none" else []
    parts += ["gradient checkpointing"] if scenario.gradient_checkpointing else []
    parts += ["feed-forward in tiles"] if scenario.tiled_mlp else []
    parts += ["layer inputs on the host"] if scenario.activation_offloading else []
    rows = "row" if scenario.batch == 1 else "rows"
    size = f"{scenario.batch} {'packed ' if scenario.rows == 'packed' else ''}{rows} of {scenario.seq_len:,} tokens"
    times = f", {scenario.accumulation} times a step" if scenario.accumulation > 1 else ""
    return f"{', '.join(parts)}; {size}{times}"


def as_dict(view: View) -> dict[str, object]:
    """The whole answer as plain values, for JSON; sizes in bytes."""
    sizes = {layer.name: layer.num_bytes for layer in layers(view.plan, view.context_bytes)}
    return {
        "model": view.model,
        "question": view.question,
        "verdict": verdict(view),
        "card": view.card,
        "usable_bytes": view.usable_bytes,
        "fits": None if view.card is None or not view.plan.traced else view.plan.fits,
        "spare_bytes": view.spare_bytes,
        "smi_parts": sizes,
        **{key: value for key, value in view.plan.to_dict().items() if key not in ("fits", "notes", "work")},
        "notes": [*view.notes, *view.plan.notes],
    }


def seconds(value: float) -> str:
    """``0.83 s`` or ``12 s``, two significant digits."""
    return f"{value * 1000:.0f} ms" if value < 0.1 else f"{value:.2f} s" if value < 10 else f"{value:,.0f} s"


def _paged_bytes(view: View) -> int:
    return view.plan.smi_peak_bytes - view.plan.reserved_peak_bytes - view.context_bytes
