"""Saved adapters of one base made into a new one, saved likewise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fitune.adapters import in_memory
from fitune.adapters.adapter_folder import base_facts, load_adapter, save_adapter
from fitune.adapters.combine import Combined, combine
from fitune.adapters.locate import digest, find_adapter, refuse_other_merges
from fitune.adapters.storage import title
from fitune.errors import ModelError
from fitune.evaluation.inference_model import open_base_of
from fitune.models.hardware import choose_precision, detect


@dataclass(frozen=True)
class CombinedOnDisk:
    """What was made, and where it lies."""

    report: Combined
    folder: Path

    def to_dict(self) -> dict[str, object]:
        """Plain values for ``--json``."""
        return {**asdict(self.report), "folder": str(self.folder)}


def combine_on_disk(
    parts: Sequence[tuple[str, float]],
    new: str,
    kind: str = "cat",
    rank: int | None = None,
    density: float | None = None,
    seed: int = 0,
    runs_folder: str | Path = "runs",
    device: str = "auto",
) -> CombinedOnDisk:
    """Load the base of the first adapter, all adapters over it, combine them, and save the result.

    Args:
        parts: (run or adapter folder, weight).
        new: name of the new adapter: a folder below ``runs_folder``.
        seed: of the values that dare drops.

    Raises:
        ModelError: as `combine`; another base or template; the place is taken.
    """
    place = Path(runs_folder) / new
    if place.exists():
        raise ModelError(f"{place} already exists; choose another name")
    folders = [find_adapter(name, runs_folder) for name, _ in parts]
    if len({folder.resolve() for folder in folders}) < 2:
        raise ModelError("a combination needs at least two different adapters")
    for folder in folders[1:]:
        refuse_other_merges(folders[0], folder)
    hardware = detect(device)
    base, facts = open_base_of(folders[0], hardware, choose_precision("auto", hardware))
    model = load_adapter(base.model, folders[0])
    # Names in memory: dots are PEFT's own separators, and two runs' folders may have one name.
    names = [f"{title(folder).replace('.', '-')}-{place}" for place, folder in enumerate(folders)]
    in_memory.rename(model, "default", names[0])
    for folder, name in zip(folders[1:], names[1:], strict=True):
        in_memory.add(model, folder, name)
    torch.manual_seed(seed)
    weights = [weight for _, weight in parts]
    report = combine(model, list(zip(names, weights, strict=True)), "combined", kind, rank, density)
    held = base_facts(base)
    # Token rows that were grown for the template are those of the first adapter's facts.
    held["base"] = facts["base"]
    if "template" in facts:
        held["template"] = facts["template"]
    if "embedding_rows" in facts:
        held["embedding_rows"] = facts["embedding_rows"]
    held["combined"] = [
        {"adapter": str(f.resolve()), "sha256": digest(f), "weight": w} for f, w in zip(folders, weights, strict=True)
    ]
    held["kind"] = kind
    save_adapter(model, base.tokenizer, base.template, place, held, "combined")
    said = tuple((title(folder), weight) for folder, weight in zip(folders, weights, strict=True) if weight)
    return CombinedOnDisk(
        Combined(name=new, parts=said, kind=report.kind, rank=report.rank, density=report.density), place
    )
