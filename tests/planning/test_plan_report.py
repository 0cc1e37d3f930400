"""What is shown of a plan: the same bytes in the table, the bar, JSON and the picture."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from rich.console import Console

from fitune.planning.predict import Plan
from fitune.planning.report.plan_report import LOOKS, View, as_dict, describe, layers, seconds, verdict
from fitune.planning.report.svg import html, svg
from fitune.planning.report.terminal import bar, print_models, print_plan
from fitune.planning.scenario import Scenario
from fitune.sizes import size_in

MIB, GIB = 2**20, 2**30
PARTS = {"activations": 2 * GIB, "weights": 8 * GIB, "logits and loss": GIB, "something new": 3 * MIB}
ALLOCATED = sum(PARTS.values())
PHASES: dict[str, dict[str, int | str]] = {
    name: {"allocated_bytes": size, "reserved_bytes": size + MIB, "smi_bytes": size + GIB, "moment": f"{name}, <here>"}
    for name, size in (("load", 8 * GIB), ("step 2", ALLOCATED))
}
PLAN = Plan(
    ALLOCATED, ALLOCATED + 100 * MIB, ALLOCATED + 100 * MIB + 500 * MIB + 7 * MIB, PARTS,
    "step 2, backward of layer 3 of 4, attention", PHASES, True, trained_parameters=1_000_000,
    total_parameters=100_000_000, notes=("an assumption",),
)  # fmt: skip
VIEW = View("a/b & c", "bf16 weights", PLAN, "RTX 4090", 24 * GIB, 500 * MIB, notes=("said aloud",))
TIGHT = replace(VIEW, usable_bytes=10 * GIB, plan=replace(PLAN, fits=False))


def printed(view: View, width: int = 80, colour: bool = False) -> str:
    out = io.StringIO()
    terminal = {"force_terminal": True, "color_system": "truecolor"} if colour else {}
    # As fitune.console makes it, of a fixed width.
    print_plan(Console(file=out, width=width, highlight=False, soft_wrap=True, **terminal), view)
    return out.getvalue()


def test_the_pieces_sum_to_what_nvidia_smi_shows() -> None:
    pieces = layers(PLAN, VIEW.context_bytes)
    assert sum(piece.num_bytes for piece in pieces) == PLAN.smi_peak_bytes
    assert [piece.name for piece in pieces] == [
        "weights", "activations", "logits and loss", "something new", "fragmentation", "paged states", "CUDA context",
    ]  # fmt: skip


def test_letters_and_colours_are_told_apart() -> None:
    letters = [letter for letter, _, _ in LOOKS.values()]
    assert len(set(letters)) == len(letters)
    assert len({colour for _, colour, _ in LOOKS.values()}) == len(LOOKS)


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (VIEW, "fits RTX 4090: needs 11.60 GiB of 24.00 GiB, 12.40 GiB to spare"),
        (TIGHT, "does not fit RTX 4090: needs 11.60 GiB, has 10.00 GiB, 1.60 GiB too much"),
        (replace(TIGHT, plan=PLAN), "fits RTX 4090, only just"),
        (replace(VIEW, card=None, usable_bytes=None), "needs 11.60 GiB; no GPU here and none named, so no verdict"),
    ],
)
def test_the_verdict_comes_first_and_says_by_how_much(view: View, expected: str) -> None:
    assert verdict(view).startswith(expected)
    assert printed(view, 120).startswith(expected)


def test_everything_is_said() -> None:
    text = printed(VIEW, 120)
    for word in ("allocated", "reserved", "nvidia-smi", *PARTS, "fragmentation", "CUDA context", PLAN.moment):
        assert word in text, word
    assert "11.00 GiB" in text and "1,000,000 of 100,000,000 parameters (1.00%)" in text
    assert "note: said aloud" in text and "note: an assumption" in text
    assert "an estimate" not in text
    assert "about 0.83 s an optimizer step (an estimate" in printed(
        replace(VIEW, plan=replace(PLAN, seconds_per_step=0.83))
    )


@pytest.mark.parametrize("view", [VIEW, TIGHT])
def test_80_columns_are_enough(view: View) -> None:
    lines = printed(view, 80).splitlines()
    # Only the verdict and the question may run on: a terminal breaks them by itself.
    assert [line for line in lines[2:] if len(line) > 80] == []


def test_the_bar_is_readable_without_colour() -> None:
    line = bar(VIEW, 78, coloured=False).plain
    assert len(line) == 80 and line.endswith("|")
    assert line.count("W") == round(8 / 24 * 77) and line.count("A") > 0
    over = bar(TIGHT, 78, coloured=False).plain
    assert over.index("|") - 2 == round(10 * GIB / TIGHT.plan.smi_peak_bytes * 77) and "." not in over


def test_colours_only_where_there_are_colours() -> None:
    assert "\x1b[" not in printed(VIEW) and "█" not in printed(VIEW)
    assert "\x1b[" in printed(VIEW, colour=True) and "█" in printed(VIEW, colour=True)


def test_json_holds_every_figure() -> None:
    found = json.loads(json.dumps(as_dict(VIEW)))
    assert found["fits"] is True and found["spare_bytes"] == 24 * GIB - PLAN.smi_peak_bytes
    assert sum(found["parts"].values()) == found["allocated_peak_bytes"]
    assert sum(found["smi_parts"].values()) == found["smi_peak_bytes"]
    assert as_dict(replace(VIEW, card=None))["fits"] is None


@pytest.mark.parametrize("view", [VIEW, TIGHT, replace(VIEW, card=None, usable_bytes=None)])
def test_the_picture_is_whole_and_stands_alone(view: View) -> None:
    text = svg(view)
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert text.count("http") == 1  # the namespace: nothing is fetched
    width = float(root.attrib["viewBox"].split()[2])
    for shape in root.iter("{http://www.w3.org/2000/svg}rect"):
        x, wide = float(shape.get("x", 0)), float(shape.attrib["width"])
        assert wide >= 0 and x + wide <= width
    said = "".join(root.itertext())
    for word in ("a/b & c", *PARTS, "nvidia-smi", PLAN.moment):
        assert word in said, word


def test_the_page_escapes_and_stands_alone() -> None:
    page = html(VIEW, 'fitune plan a --gpu "RTX <4090>"')
    assert "<svg" in page and "&lt;here&gt;" in page and "<here>" not in page and "RTX &lt;4090&gt;" in page
    assert page.count("http") == 1 and "<script" not in page
    assert f"{8 * GIB:,}" in page


def test_sizes_have_one_unit() -> None:
    assert size_in(1536 * MIB, 2 * GIB) == "1,536 MiB"
    assert size_in(1536 * MIB, 20 * GIB) == "1.50 GiB"
    assert size_in(1000, 2 * GIB) == "< 1 MiB" and size_in(MIB, 20 * GIB) == "< 0.01 GiB"
    assert size_in(0, GIB) == "0 MiB"


def test_seconds_have_the_digits_that_an_estimate_deserves() -> None:
    assert [seconds(value) for value in (0.0123, 0.834, 12.3)] == ["12 ms", "0.83 s", "12 s"]


def test_the_question_in_words() -> None:
    line = describe(Scenario(weights="nf4", gradient_checkpointing=True, batch=4, accumulation=2))
    assert line == (
        "nf4 weights, LoRA rank 16 on all linear layers, adamw, attention sdpa, bf16 autocast, "
        "gradient checkpointing; 4 rows of 1,024 tokens, 2 times a step"
    )
    assert "full fine-tuning" in describe(Scenario(tuning="full", weights="fp32"))


def test_several_models_name_the_largest_that_fits() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    small = replace(VIEW, model="small", plan=replace(PLAN, total_parameters=10**9))
    large = replace(TIGHT, model="large", plan=replace(TIGHT.plan, total_parameters=7 * 10**9))
    print_models(console, [large, small], "RTX 4090")
    text = out.getvalue()
    assert text.startswith("the largest that fits RTX 4090: small") and "7.00 B" in text
    print_models(console, [large], "RTX 4090")
    assert "none of these fits RTX 4090" in out.getvalue()
