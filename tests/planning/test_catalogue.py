"""The catalogue: every row is whole, follows from the card's own numbers, and is found however it is written."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from fitune.errors import PlanError
from fitune.planning.gpus import catalogue as rooms
from fitune.planning.gpus.catalogue import GIB, MIB, budget, catalogue, find_gpu, from_driver, parse_bytes, present

CARDS = catalogue()
# 16-bit operations of a multiprocessor in one clock with fp32 sums, dense: tensor cores x their rate, from the white
# papers of each architecture; GeForce cards sum in fp32 at half the rate of the workstation's.
PER_CLOCK = {"volta": 1024, "turing": 1024, "ampere": 1024, "ada": 1024, "hopper": 4096, "blackwell": 1024}
A100, B200 = 2048, 8192


def test_some_sixty_cards_each_with_a_source() -> None:
    assert len(CARDS) >= 60
    for card in CARDS.values():
        assert card.source in rooms.SOURCES.values() and len(card.source) > 40


@pytest.mark.parametrize("name", CARDS)
def test_a_row_is_whole(name: str) -> None:
    card = CARDS[name]
    assert card.name == name and find_gpu(name) is card
    assert 0.88 * card.memory_bytes < card.usable_bytes < card.memory_bytes
    assert 0.1 * GIB <= card.context_bytes < GIB
    assert 4 * GIB < card.memory_bytes <= 192 * GIB and (6, 0) <= card.capability <= (12, 0)
    assert 1e11 < (card.bandwidth_bytes_s or 0) < 1e13
    # No card multiplies 16-bit matrices slower than fp32 without matrix units, P100 apart, which has none.
    assert card.matrix_flops and card.fp32_flops
    assert card.matrix_flops >= 0.99 * card.fp32_flops or "GeForce" in card.source or card.name == "A10G"


@pytest.mark.parametrize("name", CARDS)
def test_the_matrix_rate_follows_from_multiprocessors_and_clock(name: str) -> None:
    card = CARDS[name]
    assert card.fp32_flops and card.matrix_flops
    clock = card.fp32_flops / rooms.FP32_PER_CLOCK.get(card.capability, rooms.FP32_PER_CLOCK_LATER)
    found = card.matrix_flops / clock
    if card.architecture == "pascal":
        assert found == pytest.approx(128, rel=0.02)
    elif card.capability == (8, 0):
        assert found == pytest.approx(A100, rel=0.02)
    elif card.capability == (10, 0):
        assert found == pytest.approx(B200, rel=0.02)
    else:
        full = PER_CLOCK[card.architecture]
        # GeForce, L40 and the A10G (sold as half of an A10's rate) at half of it.
        shares = {"GeForce": (0.5, 1.0), "L40": (0.5,), "A10G": (0.5,)}
        key = next((key for key in shares if key in card.source or key == card.name), "")
        assert any(found == pytest.approx(full * share, rel=0.03) for share in shares.get(key, (1.0,)))


def test_what_is_not_known_is_not_taken_for_more() -> None:
    """The rule for cards without a known capacity never gives more than a known one has."""
    import csv
    from importlib.resources import files

    with (files("fitune.planning.gpus") / "gpus.csv").open(encoding="utf-8") as file:
        known = [row for row in csv.DictReader(file) if row["total_gib"] and row["name"] != "B200"]
    assert len(known) > 25
    for row in known:
        by_rule = rooms._usable(round(float(row["memory_gib"]) * GIB), row["inline_ecc"] == "1")
        assert by_rule <= float(row["total_gib"]) * GIB + 1, row["name"]


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("rtx4090", "RTX 4090"), ("4090", "RTX 4090"), ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("2080ti", "RTX 2080 Ti"), ("tesla t4", "T4"), ("A6000", "RTX A6000"), ("A100-SXM4-80GB", "A100 80GB"),
        ("a100 80 gb", "A100 80GB"), ("RTX 4060 Ti 8GB", "RTX 4060 Ti"), ("h100", "H100 SXM"),
        ("RTX 3060 Laptop GPU", "RTX 3060 Laptop"),
    ],
)  # fmt: skip
def test_a_name_is_found_however_it_is_written(written: str, name: str) -> None:
    assert find_gpu(written).name == name


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("RTX 4091", 'did you mean "RTX 4090"'),
        ("H101", 'did you mean "H100'),
        ("A100", '"A100 40GB", "A100 80GB", "A100 80GB PCIe"; name one'),
        ("RTX 6000", '"Quadro RTX 6000", "RTX 6000 Ada"; name one'),
        ("banana", "--gpu list shows all"),
        ("", "there is no GPU"),
    ],
)
def test_other_names_are_errors_with_a_way_out(written: str, said: str) -> None:
    with pytest.raises(PlanError) as caught:
        find_gpu(written)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("driver", "mebibytes", "capability", "name"),
    [
        # what nvidia-smi prints on these cards
        ("NVIDIA A100-SXM4-80GB", 81920, "8.0", "A100 80GB"),
        ("NVIDIA A100 80GB PCIe", 81920, "8.0", "A100 80GB PCIe"),
        ("NVIDIA A100-SXM4-40GB", 40960, "8.0", "A100 40GB"),
        ("NVIDIA H100 80GB HBM3", 81559, "9.0", "H100 SXM"),
        ("NVIDIA H100 PCIe", 81559, "9.0", "H100 PCIe"),
        ("NVIDIA GH200 480GB", 97871, "9.0", "GH200 96GB"),
        ("Tesla T4", 15360, "7.5", "T4"),
        ("Tesla V100-SXM2-16GB", 16384, "7.0", "V100 16GB"),
        ("NVIDIA GeForce RTX 4070 Ti", 12282, "8.9", "RTX 4070 Ti"),
        ("NVIDIA RTX 6000 Ada Generation", 49140, "8.9", "RTX 6000 Ada"),
    ],
)
def test_the_drivers_names_are_the_catalogues(driver: str, mebibytes: int, capability: str, name: str) -> None:
    assert from_driver(driver, mebibytes * MIB, capability).name == name


def test_a_card_that_is_not_listed_has_memory_and_no_rates() -> None:
    card = from_driver("NVIDIA Some New Thing", 20 * GIB, "9.9")
    assert card.capability == (9, 9) and 19 * GIB < card.usable_bytes < 20 * GIB and card.matrix_flops is None


def test_the_card_here_is_the_one_that_cuda_would_take(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "0, GPU-aaa, Tesla T4, 15360, 7.5\n1, GPU-bbb, NVIDIA L4, 23034, 8.9\n"

    def ran(words: list[str], **how: Any) -> Any:
        assert words[0] == "nvidia-smi"
        return subprocess.CompletedProcess(words, 0, said, "")

    monkeypatch.setattr(rooms.subprocess, "run", ran)
    for visible, name in ((None, "T4"), ("1,0", "L4"), ("GPU-bbb", "L4"), ("", None), ("7", None)):
        if visible is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        card = present()
        assert (card.name if card else None) == name


def test_no_driver_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert present() is None


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("16GiB", 16 * GIB), ("16 GB", 16 * 10**9), ("16G", 16 * GIB), ("15.5gib", 31 * GIB // 2), ("8,000MiB", 8000 * MIB)],
)  # fmt: skip
def test_sizes_of_memory(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize("text", ["16", "banana", "", "GiB", "0GiB", "-3GiB", "1e3GiB"])
def test_what_is_no_size_is_named(text: str) -> None:
    with pytest.raises(PlanError, match="for example 16GiB"):
        parse_bytes(text)


def test_a_budget_has_the_rates_of_a_card_and_says_so() -> None:
    card = budget(16 * GIB)
    assert (card.name, card.usable_bytes, card.rates_of) == ("16 GiB", 16 * GIB, "RTX 4090")
    with pytest.raises(PlanError, match="context alone takes"):
        budget(300 * MIB)
