"""Adapters on disk: list, describe, compare, rename, delete. No model is loaded; tensors are read for `compare` alone.

In: the folder of all runs, names. Out: plain values, or files moved and removed.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Required, TypedDict

from fitune.adapters.locate import (
    CONFIG,
    MERGED,
    WEIGHTS,
    TemplateFacts,
    digest,
    find_adapter,
    lora_options,
    read_config,
    read_facts,
)
from fitune.errors import ModelError, RunError
from fitune.runs import manifest as manifests
from fitune.runs.disk_space import folder_bytes
from fitune.runs.run_folder import MANIFEST, RunFolder

if TYPE_CHECKING:
    from torch import Tensor


class Listed(TypedDict, total=False):
    """An adapter in a line; `error` instead of the rest where it is damaged."""

    name: Required[str]
    path: Required[str]
    kind: str
    rank: int
    base: str
    quantization: object
    bytes: int
    error: str


class Described(TypedDict):
    """Everything that an adapter's files tell.

    parameters and in_full count what is trained as A and B and what is trained in full, by module; total counts base
    and adapter, None when the run is not beside it.
    """

    name: str
    path: str
    kind: str
    rank: int
    alpha: float
    dropout: float
    targets: str | list[str]
    bias: str
    init: str | bool | None
    base: str
    revision: str | None
    quantization: object
    template: TemplateFacts | None
    parameters: dict[str, int]
    in_full: dict[str, int]
    trained: int
    total: int | None
    share: float | None
    bytes: int
    continues: str | None


class Update(TypedDict):
    """‖ΔW‖ of each of two adapters, and the cosine between the two; None where one of them leaves the layer alone."""

    norms: list[float]
    cosine: float | None


class AdapterComparison(TypedDict):
    """Two adapters side by side; options: those that differ, modules: the layers of a name together."""

    names: list[str]
    same_base: bool
    options: dict[str, list[object]]
    modules: dict[str, Update]


def title(folder: Path) -> str:
    """What an adapter is called: its run's name, or its folder's."""
    path = folder.resolve()
    return path.parent.name if path.name == "adapter" else path.name


def list_adapters(root: str | Path = "runs") -> list[Listed]:
    """One summary an adapter below ``root``, by name; damaged ones say so. Exported copies are left out."""
    found: list[Listed] = []
    for config in sorted(Path(root).glob(f"**/{CONFIG}")):
        if any(part.startswith(".") or part in ("checkpoints", "export", MERGED) for part in config.parts):
            continue
        try:
            whole = describe(config.parent)
            found.append(
                {
                    "name": whole["name"],
                    "path": whole["path"],
                    "kind": whole["kind"],
                    "rank": whole["rank"],
                    "base": whole["base"],
                    "quantization": whole["quantization"],
                    "bytes": whole["bytes"],
                }
            )
        except (ModelError, RunError, KeyError) as error:
            found.append({"name": title(config.parent), "path": str(config.parent), "error": str(error)})
    return found


def describe(folder: Path) -> Described:
    """Everything that an adapter's files tell."""
    from safetensors import safe_open

    facts, config, options = read_facts(folder), read_config(folder), lora_options(folder)
    low_rank: dict[str, int] = {}
    in_full: dict[str, int] = {}
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder} has no {WEIGHTS}; pickled adapters are not loaded")
    with safe_open(folder / WEIGHTS, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118  a safetensors file is no dict
            count = 1
            for length in file.get_slice(name).get_shape():
                count *= length
            into, module = (low_rank, _module(name)) if ".lora_" in name else (in_full, _module(name))
            into[module] = into.get(module, 0) + count
    trained = sum(low_rank.values()) + sum(in_full.values())
    manifest = _manifest(folder)
    counted = manifest.get("parameters") if manifest else None
    total = counted["total"] if counted else None
    continues = manifest.get("model", {}).get("continues") if manifest else None
    kinds = [word for word, on in (("DoRA", options["dora"]), ("rank-stabilised", options["rslora"])) if on]
    return {
        "name": title(folder),
        "path": str(folder),
        "kind": ", ".join(["LoRA", *kinds]),
        "rank": options["rank"],
        "alpha": options["alpha"],
        "dropout": options["dropout"],
        "targets": options["targets"],
        "bias": options["bias"],
        "init": facts.get("init") or config.get("init_lora_weights"),
        "base": facts["base"]["name"],
        "revision": facts["base"].get("revision"),
        "quantization": (facts.get("quantization") or {}).get("kind", "none"),
        "template": facts.get("template"),
        "parameters": low_rank,
        "in_full": in_full,
        "trained": trained,
        "total": total,
        "share": trained / total if total else None,
        "bytes": folder_bytes(folder),
        "continues": continues.get("adapter") if continues else None,
    }


def compare(first: Path, second: Path) -> AdapterComparison:
    """Two adapters side by side. ΔW = s·B·A is never built: norms and products come from r × r matrices."""
    facts = [describe(folder) for folder in (first, second)]
    left_out = ("name", "path", "bytes", "continues", "parameters", "in_full", "trained", "total", "share", "template")
    differing: dict[str, list[object]] = {
        key: [one.get(key) for one in facts]
        for key in facts[0]
        if key not in left_out and facts[0].get(key) != facts[1].get(key)
    }
    updates = [_updates(folder) for folder in (first, second)]
    sums: dict[str, list[float]] = {}
    for layer in updates[0].keys() | updates[1].keys():
        a, b = (part.get(layer) for part in updates)
        found = sums.setdefault(_module(layer), [0.0, 0.0, 0.0])
        for place, pair in enumerate(((a, a), (b, b), (a, b))):
            found[place] += _product(*pair)
    modules: dict[str, Update] = {}
    for module, (aa, bb, ab) in sorted(sums.items()):
        aa, bb = max(aa, 0.0), max(bb, 0.0)  # a sum of terms that cancel may end below zero
        cosine = ab / (aa * bb) ** 0.5 if aa > 0 and bb > 0 else None
        modules[module] = {"norms": [aa**0.5, bb**0.5], "cosine": cosine}
    same = facts[0]["base"] == facts[1]["base"] and facts[0]["revision"] == facts[1]["revision"]
    return {"names": [one["name"] for one in facts], "same_base": same, "options": differing, "modules": modules}


def rename(name: str, new: str, root: str | Path = "runs") -> Path:
    """Give an adapter another name: that of its run's folder, or of its own.

    Raises:
        ModelError: the new name is taken or no folder's name.
        RunError: a living process writes the run.
    """
    folder = find_adapter(name, root)
    owner = folder.parent if folder.name == "adapter" else folder
    if not re.fullmatch(r"[\w][\w.+-]*", new):
        raise ModelError(f'"{new}" is not a folder name; use letters, digits, dots, - and _')
    place = owner.parent / new
    if place.exists():
        raise ModelError(f"{place} already exists; choose another name")
    with _free(folder, root):
        pass  # the lock lies in the folder that moves
    owner.rename(place)
    return place / "adapter" if folder.name == "adapter" else place


def delete(name: str, root: str | Path = "runs", only_copy: bool = False) -> Path:
    """Remove an adapter's folder. A run's records and checkpoints stay.

    Args:
        only_copy: delete it though no equal one is below ``root``.

    Raises:
        ModelError: it is the only copy.
        RunError: a living process writes its run, or trains it further.
    """
    folder = find_adapter(name, root)
    with _free(folder, root):
        others = copies_of(folder, root)
        if not others and not only_copy:
            raise ModelError(f"{folder} is the only copy of this adapter below {root}; --yes deletes it anyway")
        shutil.rmtree(folder)
    return folder


def copies_of(folder: Path, root: str | Path = "runs") -> list[Path]:
    """Other folders below ``root`` with the same weights."""
    own = digest(folder)
    found = (path for path in Path(root).glob(f"**/{WEIGHTS}") if MERGED not in path.parts)
    weights = (path for path in found if path.parent.resolve() != folder.resolve())
    return [path.parent for path in weights if digest(path.parent) == own]


@contextmanager
def _free(folder: Path, root: str | Path) -> Generator[None, None, None]:
    """Hold the adapter's run against other processes.

    Raises:
        RunError: one of them writes the run, or goes on with the adapter in another.
    """
    for path in Path(root).glob(f"*/{MANIFEST}"):
        run = manifests.read(path)
        continues = run.get("model", {}).get("continues")
        if (
            continues
            and continues.get("adapter") == str(folder.resolve())
            and run.get("status") in ("running", "interrupted")
        ):
            raise RunError(
                f"run {path.parent} continues {folder} and is {run['status']}; finish it first, it will be opened again"
            )
    owner = folder.parent
    if folder.name == "adapter" and (owner / MANIFEST).is_file():
        with RunFolder(owner).locked():
            yield
    else:
        yield


def _manifest(folder: Path) -> manifests.Manifest | None:
    path = folder.parent / MANIFEST
    return manifests.read(path) if folder.name == "adapter" and path.is_file() else None


def _module(name: str) -> str:
    """``q_proj`` of base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight."""
    parts = [part for part in name.split(".") if not part.startswith(("lora_", "trainable_tokens"))]
    return [part for part in parts if part not in ("weight", "bias", "base_layer", "token_adapter", "modules_to_save")][
        -1
    ]


def _updates(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Layer → (s·B, A) in fp32, each expert by itself; a DoRA layer's direction alone."""
    from safetensors.torch import load_file

    from fitune.models.mixture.experts import experts_of_a, experts_of_b

    config = read_config(folder)
    tensors = load_file(folder / WEIGHTS)
    fused = _expert_modules(config)
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, a in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        layer = name.removesuffix(".lora_A.weight")
        b = tensors[f"{layer}.lora_B.weight"].float()
        of_experts = layer.removeprefix("base_model.model.").replace(".base_layer", "") in fused
        alpha, rank = config["lora_alpha"], config["r"] if of_experts else a.shape[0]
        scale = alpha / rank**0.5 if config.get("use_rslora") else alpha / rank
        if not of_experts:
            found[layer] = (scale * b, a.float())
            continue
        for expert, pair in enumerate(zip(experts_of_b(b, rank), experts_of_a(a.float(), rank), strict=True)):
            found[f"{layer}.lora_{expert}"] = (scale * pair[0], pair[1])
    return found


def _expert_modules(config: dict[str, Any]) -> set[str]:
    """Names of the modules whose fused parameters an adapter lies over."""
    return {name.rpartition(".")[0] for name in config.get("target_parameters") or ()}


def _product(first: tuple[Tensor, Tensor] | None, second: tuple[Tensor, Tensor] | None) -> float:
    """Inner product of two updates: tr((B₁A₁)ᵀ B₂A₂) = Σ (B₁ᵀB₂) ∘ (A₁A₂ᵀ), summed in fp64.

    An adapter that PiSSA began is saved as the difference of two products, alike after little training. The terms of
    its square then cancel, and in fp32 what is left is rounding, of either sign.
    """
    if first is None or second is None:
        return 0.0
    (b1, a1), (b2, a2) = ((b.double(), a.double()) for b, a in (first, second))
    return float(((b1.T @ b2) * (a1 @ a2.T)).sum())
