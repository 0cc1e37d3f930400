"""docs/families.md: the sheet of model families as a page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fitune.models.families.family_sheet import FAULT, NO, NOT_TRIED, FamilyRow, FamilySheet, family_sheet

HEAD = """# Model families

Tried by `python benchmarks/families.py` on {day} with {versions}. The rows are
`src/fitune/models/families/families.json`; `fitune plan` and `fitune train` say that of their model before anything is loaded.

A tiny random model of each family takes two steps of LoRA in fp32 on a CPU, is asked before and after, taken up again from
its first checkpoint, opened again, merged, planned, trained over int8 for a step and written as GGUF. A tiny model shows
whether the code of a family works, not whether a real one learns.

- **attention**: transformers' kernel, and the kinds of layers that the config names (full where it names none).
- **packs**: how the rows of a step are laid out, as chosen before step one by comparing losses with the plain forward pass.
  `tree`: rows share what they begin with; `rows`: side by side; otherwise padded, and why.
- **int8**: what is stored in 8 bits; the output head, embeddings and norms never are.
- **resumes**: `bit for bit`: losses and adapter of a run taken up from step 1 equal those of the run that was not stopped.
- **merges**: divergence of the merged 16-bit model from the adapter over its base, in nats a token. Every weight of the
  base is in the copy, vision towers included.
- **plans**: `traced`: the memory plan runs the model's own code; otherwise it counts by the closed form, and says so.
- **GGUF**: written by fitune's own writer and read back. llama.cpp's converter was not there yet when this was made; it writes
  many more ([export.md](export.md)).

Of {tried} families: {trains} train, {packs} of them packed ({tree} as a tree), {resumes} resume bit for bit, {reopens} open
again, {merges} merge, {plans} have a traced plan, {gguf} go to GGUF. Not tried here, since no tiny model of it could be made:
{untried}. Refused with a sentence before training: {refused}. Failed in another way: {faults}.

| family | trains | attention | packs | LoRA on | int8 | resumes | merges | plans | GGUF |
|---|---|---|---|---|---|---|---|---|---|
"""


def families_text() -> str:
    """The whole page."""
    sheet = family_sheet()
    rows = [sheet.rows[name] for name in sorted(sheet.rows)]
    text = HEAD.format(**_counts(rows), day=sheet.made, versions=_versions(sheet))
    text += "".join(_line(row) for row in rows)
    said = [*_said(rows)]
    if said:
        text += "\n## What was refused or failed\n\n" + "".join(f"- `{family}`: {why}\n" for family, why in said)
    return text


def _versions(sheet: FamilySheet) -> str:
    return ", ".join(f"{name} {version}" for name, version in sheet.versions.items())


def _counts(rows: list[FamilyRow]) -> dict[str, int]:
    return {
        "tried": len(rows),
        "trains": sum(row.trains == "yes" for row in rows),
        "packs": sum(row.packs in ("tree", "rows") for row in rows),
        "tree": sum(row.packs == "tree" for row in rows),
        "resumes": sum(row.resumes == "bit for bit" for row in rows),
        "reopens": sum(row.reopens == "yes" for row in rows),
        "merges": sum(row.merges not in (NOT_TRIED, NO, FAULT) for row in rows),
        "plans": sum(row.plans == "traced" for row in rows),
        "gguf": sum(row.gguf.startswith("yes") for row in rows),
        "untried": sum(row.trains == "not tried" for row in rows),
        "refused": sum(row.trains == NO for row in rows),
        "faults": sum(bool(row.faults) for row in rows),
    }


def _line(row: FamilyRow) -> str:
    plans = "traced" if row.plans == "traced" else row.plans.partition(":")[0]
    adapted = ", ".join(row.adapted) or NOT_TRIED
    cells = (
        f"`{row.family}`", row.trains, row.attention, row.packs, adapted, row.quantized, row.resumes, row.merges, plans,
        row.gguf,
    )  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _said(rows: Iterable[FamilyRow]) -> Iterator[tuple[str, str]]:
    for row in rows:
        whys = [*row.refused, *row.faults]
        if row.plans.startswith("closed form:"):
            whys.append(f"plans: {row.plans}")
        for why in sorted(whys):
            yield row.family, why
