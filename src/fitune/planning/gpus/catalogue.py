"""GPUs by name: what a process may use of their memory, which kernels they choose, how fast they are.

In: a name, a size, or the machine. Out: a frozen `Gpu`. The figures are in gpus.csv, their sources in `SOURCES`.
Imports nothing but the standard library.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from typing import NamedTuple

from fitune import sizes
from fitune.errors import PlanError

MIB, GIB = 2**20, 2**30
SOURCES = {
    "datacenter": "NVIDIA's data sheet of the product; rates without sparsity. Where the sheet gives no clock, the "
    "boost clock of its architecture's white paper",
    "workstation": "NVIDIA's data sheet of the product; matrix rate: multiprocessors x 1,024 operations a clock x boost "
    "clock, which is the sheets' figure without sparsity",
    "geforce-20": "GeForce 20: NVIDIA Turing GPU Architecture, WP-09183-001 (2018), appendices, and the later cards' product pages",
    "geforce-30": "GeForce 30: NVIDIA Ampere GA102 GPU Architecture, v2.1 (2021), appendix A, and the later cards' product pages",
    "geforce-40": "GeForce 40: NVIDIA Ada GPU Architecture, v2.1 (2023), appendix A, and the later cards' product pages",
    "geforce-50": "GeForce 50: NVIDIA RTX Blackwell GPU Architecture, v1.1 (2025), appendix A, and the later cards' product pages",
    "laptop-tops": "NVIDIA's comparison of GeForce laptops: cores, bandwidth, and the highest of the clocks that makers "
    "may choose; a thin laptop is slower",
    "total": "column total_gib: the card's capacity as torch's out-of-memory messages print it in public issues",
    "context": "column context_gib: the process' memory less torch's reserved memory in out-of-memory messages",
}
# Operations of a multiprocessor in one clock, multiply and add counted apart: fp32 without matrix units (CUDA C++
# Programming Guide, table "Arithmetic Instructions", twice the entry for fp32 add, multiply, multiply-add).
FP32_PER_CLOCK = {(6, 0): 128, (7, 0): 128, (7, 5): 128, (8, 0): 128}
FP32_PER_CLOCK_LATER = 256
# The driver, its page tables and the display keep some memory: of the cards whose capacity is known none loses more
# than this to them (A10G: 2.3 %; B200, listed with what is not its own, aside). Used where total_gib is empty.
KEPT_SHARE, KEPT_LEAST = 0.024, 0.25 * GIB
ECC_SHARE = 1 / 16  # GDDR6 cards with ECC on hold the check bits in the memory itself
CONTEXT = round(0.51 * GIB)  # the largest in gpus.csv, where context_gib is empty
# A budget names no card: the kernels of the architectures that most cards have, the rates of one of them.
BUDGET_RATES = "RTX 4090"
# Words of a driver's or a shop's name that do not tell cards apart.
NOISE = r"\b(nvidia|geforce|tesla|gpu|generation|graphics|card|max-?q|workstation|server|hbm\d?e?|sxm\d?|pcie|nvl|edition)\b"
# Words that people leave out.
LEFT_OUT = {"rtx", "ada", "quadro", "blackwell"}


@dataclass(frozen=True)
class Gpu:
    """A card, or a budget of memory."""

    name: str
    usable_bytes: int
    """What a process may take in all, its CUDA context included."""
    capability: tuple[int, int]
    context_bytes: int
    memory_bytes: int = 0
    """What the box says; 0 for a budget."""
    architecture: str = ""
    bandwidth_bytes_s: float | None = None
    matrix_flops: float | None = None
    """16-bit matrix products with fp32 sums, dense, operations a second at the boost clock."""
    fp32_flops: float | None = None
    """fp32 without matrix units: torch multiplies fp32 so unless TF32 is allowed."""
    rates_of: str | None = None
    """The card whose rates these are, when it is another."""
    source: str = ""


@lru_cache(maxsize=1)
def catalogue() -> dict[str, Gpu]:
    """Name → card, in the table's order."""
    with (files("fitune.planning.gpus") / "gpus.csv").open(encoding="utf-8") as file:
        return {row["name"]: _card(row) for row in csv.DictReader(file)}


def find_gpu(name: str) -> Gpu:
    """The card of a name, however it is written: "RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "4090".

    Raises:
        PlanError: unknown (the nearest names are given) or several cards' name (they are listed).
    """
    cards = catalogue()
    asked = _parsed(name)
    for card in cards.values():
        if _parsed(card.name) == asked:
            return card
    family = _family(asked)
    if len(family) == 1:
        return family[0]
    if family:
        raise PlanError(f'there are several cards "{name}": {_quoted([card.name for card in family])}; name one')
    joined: dict[str, str] = {}
    for known in cards:
        joined.setdefault(_joined(known), known)
    alike = [
        *get_close_matches(_joined(name), joined, 3, 0.7),
        *get_close_matches("rtx" + _joined(name), joined, 2, 0.8),
    ]
    near = [joined[one] for one in dict.fromkeys(alike)][:3]
    hint = f" (did you mean {_quoted(near)}?)" if near else ""
    raise PlanError(
        f'there is no GPU "{name}" in the catalogue{hint}; --gpu list shows all {len(cards)}, '
        "--budget 16GiB plans for any card of that size"
    )


def budget(num_bytes: int) -> Gpu:
    """So much memory, on a card of no name.

    Raises:
        PlanError: not even a CUDA context fits.
    """
    if num_bytes <= CONTEXT:
        raise PlanError(
            f"a budget of {shown(num_bytes)} is too small: CUDA's context alone takes about {shown(CONTEXT)}; "
            "give the card's whole memory, for example 16GiB"
        )
    like = catalogue()[BUDGET_RATES]
    return Gpu(
        name=shown(num_bytes),
        usable_bytes=num_bytes,
        capability=like.capability,
        context_bytes=CONTEXT,
        architecture=like.architecture,
        bandwidth_bytes_s=like.bandwidth_bytes_s,
        matrix_flops=like.matrix_flops,
        fp32_flops=like.fp32_flops,
        rates_of=BUDGET_RATES,
    )


def parse_bytes(text: str) -> int:
    """`fitune.sizes.parse_bytes` of a budget.

    Raises:
        PlanError: no number with a unit, or not above zero.
    """
    try:
        return sizes.parse_bytes(text)
    except ValueError as error:
        raise PlanError(str(error)) from None


def shown(num_bytes: int) -> str:
    """``16 GiB``, ``15.7 GiB`` or ``560 MiB``."""
    if num_bytes < GIB:
        return f"{num_bytes / MIB:.4g} MiB"
    return f"{num_bytes / GIB:,.4g} GiB"


def present() -> Gpu | None:
    """The NVIDIA card that this process would train on; None without one. Asks the driver, imports nothing."""
    fields = "index,uuid,name,memory.total,compute_cap"
    words = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [[field.strip() for field in line.split(",")] for line in said.splitlines() if line.count(",") == 4]
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        first = chosen.split(",")[0].strip()
        rows = [row for row in rows if first and (row[0] == first or row[1].startswith(first))]
    if not rows:
        return None
    _, _, name, mebibytes, capability = rows[0]
    return from_driver(name, int(float(mebibytes)) * MIB, capability)


def from_driver(name: str, total_bytes: int, capability: str) -> Gpu:
    """The catalogue's card of a driver's name and memory; a card that it does not hold has no rates.

    Args:
        total_bytes: nvidia-smi's memory.total, which is up to a few percent more than a process gets.
        capability: "8.9".
    """
    major, _, minor = capability.partition(".")
    asked = _parsed(name)
    like = [
        card
        for card in catalogue().values()
        if _parsed(card.name).words == asked.words and card.capability == (int(major), int(minor))
        # A GH200's name tells the host's memory: what the driver counts decides.
        if abs(card.memory_bytes - total_bytes) < 0.08 * total_bytes
    ]
    if like:
        return max(like, key=lambda card: _parsed(card.name).form == asked.form)
    usable = _usable(total_bytes, False)
    return Gpu(
        name=name,
        usable_bytes=usable,
        capability=(int(major), int(minor)),
        context_bytes=CONTEXT,
        memory_bytes=total_bytes,
        source="nvidia-smi",
    )


def _card(row: dict[str, str]) -> Gpu:
    memory = round(float(row["memory_gib"]) * GIB)
    major, _, minor = row["capability"].partition(".")
    capability = (int(major), int(minor))
    usable = round(float(row["total_gib"]) * GIB) if row["total_gib"] else _usable(memory, row["inline_ecc"] == "1")
    clock = int(row["multiprocessors"]) * float(row["boost_mhz"]) * 1e6
    return Gpu(
        name=row["name"],
        usable_bytes=usable,
        capability=capability,
        context_bytes=round(float(row["context_gib"]) * GIB) if row["context_gib"] else CONTEXT,
        memory_bytes=memory,
        architecture=row["architecture"],
        bandwidth_bytes_s=float(row["bandwidth_gb_s"]) * 1e9,
        matrix_flops=float(row["matrix_tflops"]) * 1e12,
        fp32_flops=clock * FP32_PER_CLOCK.get(capability, FP32_PER_CLOCK_LATER),
        source=SOURCES[row["source"]],
    )


def _usable(memory_bytes: int, inline_ecc: bool) -> int:
    left = memory_bytes * (1 - ECC_SHARE) if inline_ecc else memory_bytes
    return round(left - max(KEPT_SHARE * left, KEPT_LEAST))


class _Name(NamedTuple):
    """A card's name, taken apart."""

    words: frozenset[str]
    """Letters and digits apart: {"rtx", "4070", "ti"}."""
    gigabytes: int | None
    form: str
    """ "pcie", "nvl" or nothing: a module on the board."""


@lru_cache(maxsize=512)
def _parsed(name: str) -> _Name:
    text = name.lower()
    sizes = re.findall(r"(\d+)\s*gi?b?\b", text)
    text = re.sub(r"\d+\s*gi?b?\b", " ", text)
    form = next((form for form in ("pcie", "nvl") if form in text), "")
    words = re.findall(r"[a-z]+|\d+", re.sub(NOISE, " ", text))
    return _Name(frozenset(words), int(sizes[0]) if sizes else None, form)


def _family(asked: _Name) -> list[Gpu]:
    """The cards that a name may mean."""
    found: dict[int, list[Gpu]] = {}
    for card in catalogue().values():
        known = _parsed(card.name)
        more = known.words - asked.words
        if not asked.words or not asked.words <= known.words or not more <= LEFT_OUT:
            continue
        if asked.gigabytes not in (None, round(card.memory_bytes / GIB)) or (asked.form and asked.form != known.form):
            continue
        found.setdefault(len(more), []).append(card)
    return found[min(found)] if found else []


def _joined(name: str) -> str:
    """The words that tell cards apart, for spelling: "rtx4070ti"."""
    return "".join(re.findall(r"[a-z0-9]+", re.sub(NOISE, " ", re.sub(r"\d+\s*gi?b?\b", " ", name.lower()))))


def _quoted(names: list[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
