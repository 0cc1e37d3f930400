"""The sheet of families: whole, made with the packages' families in mind, and said in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_families import PACKED, TRIED, USED, make_family

from fitune.cli.pages.family_page import families_text
from fitune.models.families.family_sheet import family_note, family_sheet


def test_every_family_has_a_row_and_the_most_used_do_everything() -> None:
    rows = family_sheet().rows
    assert set(rows) == set(TRIED)
    for name in USED:
        row = rows[name]
        assert (row.trains, row.reopens, row.resumes, row.plans) == ("yes", "yes", "bit for bit", "traced"), name
        assert float(row.merges.split(",")[0]) < 1e-3 and not row.faults
    assert {name for name, row in rows.items() if row.packs == "tree"} == set(PACKED)


@pytest.mark.parametrize(
    ("family", "words"),
    [
        (
            "qwen3_moe",
            ("rows are packed, what they begin with computed once", "LoRA on experts", "linear layers, experts"),
        ),
        ("gpt_oss", ("rows are padded: its attention has sinks", "eager: sliding, full")),
        ("llama", ("trains", "merges")),
        ("no_such_family", ("was not tried", f"{len(TRIED)} that were")),
    ],
)
def test_a_family_in_one_sentence(family: str, words: tuple[str, ...]) -> None:
    said = family_note(family)
    assert "\n" not in said
    assert [word for word in words if word not in said] == []


def test_the_page_counts_what_the_sheet_says() -> None:
    text = families_text()
    rows = family_sheet().rows.values()
    assert text.count("\n| `") == len(rows)
    assert f"Of {len(rows)} families: {sum(row.trains == 'yes' for row in rows)} train" in " ".join(text.split())


def test_the_plan_says_the_row_before_anything_is_loaded(tmp_path: Path) -> None:
    from fitune.api.plan_question import ask

    folder = make_family(tmp_path / "qwen3", "qwen3")
    given: Any = {
        "data_file": None,
        "gpu_name": "RTX 4090",
        "budget": None,
        "seq_len": 32,
        "expandable_segments": False,
    }
    asked = ask(str(folder / "config.json"), [], {}, given)
    scenario = asked.scenario()
    assert asked.view(scenario, asked.plan(scenario)).notes[0] == family_note("qwen3")


def test_training_says_it_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import fitune

    model = make_family(tmp_path / "qwen3", "qwen3")
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {word}", "completion": word}) + "\n" for word in "abcd"))
    settings: dict[str, Any] = {
        "fit": "off",
        "model": {"name": str(model), "precision": "fp32", "device": "cpu"},
        "data": {"train": str(data), "eval_share": 0},
        "train": {"batch_size": 4, "max_steps": 1},
        "eval": {"samples": 0},
        "run": {"folder": str(tmp_path / "runs"), "name": "one"},
    }
    fitune.train(fitune.Settings(**settings))
    said = capfd.readouterr().err
    assert family_note("qwen3") in said
    assert said.index(family_note("qwen3")) < said.index("training rows")
