"""The sheet of model families: what a tiny random model of each did when benchmarks/families.py last tried it.

In: a `model_type`. Out: its row of families.json, and the row in one sentence. docs/families.md shows the same file.
Imports no torch: the plan says a family's row before anything is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

NOT_TRIED = "–"
NO, FAULT = "no", "FAULT"


@dataclass(frozen=True, kw_only=True)
class FamilyRow:
    """What became of a family: a word for each thing that was tried, or why not.

    Attributes:
        family: as `model_type` of its config.
        trains: yes, no (refused in a sentence), FAULT, or "not tried".
        attention: kernel as transformers chose it, and the kinds of layers that the config names.
        packs: how rows are laid out: tree, rows, or "padded: why".
        adapted: last names of what `all-linear` adapts.
        quantized: what int8 stores in 8 bits.
        reopens: a run's adapter over its base.
        resumes: "bit for bit": a run taken up from its first checkpoint ends as the one that was not stopped.
        merges: divergence of the merged 16-bit model in nats a token.
        plans: traced, or "closed form: why".
        gguf: whether it was written, and by what.
        refused: the sentences of what was refused.
        faults: what failed otherwise.
    """

    family: str
    trains: str = NOT_TRIED
    attention: str = NOT_TRIED
    packs: str = NOT_TRIED
    adapted: tuple[str, ...] = ()
    quantized: str = NOT_TRIED
    reopens: str = NOT_TRIED
    resumes: str = NOT_TRIED
    merges: str = NOT_TRIED
    plans: str = NOT_TRIED
    gguf: str = NOT_TRIED
    refused: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FamilyRow:
        """The row that JSON holds."""
        read: dict[str, Any] = dict(values)
        for name in ("adapted", "refused", "faults"):
            read[name] = tuple(read[name])
        return cls(**read)


@dataclass(frozen=True)
class FamilySheet:
    """All rows, the day, and the packages' versions."""

    made: str
    versions: Mapping[str, str]
    rows: Mapping[str, FamilyRow]


@cache
def family_sheet() -> FamilySheet:
    """The sheet that came with this version."""
    held = json.loads((files("fitune.models.families") / "families.json").read_text(encoding="utf-8"))
    rows = {row["family"]: FamilyRow.from_dict(row) for row in held["rows"]}
    return FamilySheet(held["made"], held["versions"], rows)


def family_note(model_type: str) -> str:
    """What the sheet says of a family, in one sentence; that it was not tried where it has no row."""
    sheet = family_sheet()
    row = sheet.rows.get(model_type)
    if row is None or row.trains == "not tried":
        return f"the family {model_type} was not tried; docs/families.md lists {len(sheet.rows)} that were"
    tried = f"{model_type}, as a tiny model on {sheet.made} with transformers {sheet.versions['transformers']}"
    if row.trains != "yes":
        return f"{tried}: does not train: {'; '.join((*row.refused, *row.faults))}"
    parts = [
        "trains",
        _rows_laid_out(row.packs),
        f"attention is {row.attention}",
        f"LoRA on {', '.join(row.adapted)}",
        f"int8 holds {row.quantized}",
        "resumes bit for bit" if row.resumes == "bit for bit" else f"resumes: {row.resumes}",
        "does not merge" if row.merges in (NO, FAULT, NOT_TRIED) else "merges",
    ]
    return f"{tried}: {'; '.join(parts)}"


def _rows_laid_out(packs: str) -> str:
    if packs.startswith("padded"):
        return f"rows are {packs}"
    return "rows are packed" + (", what they begin with computed once" if packs == "tree" else "")
