"""Every recipe loads; the generated documents are what the settings say."""

from __future__ import annotations

import difflib
from pathlib import Path

import pytest

from fitune.cli.pages.docs import documents, example_text, stale
from fitune.config.fields import all_fields
from fitune.config.sections import Settings
from fitune.config.stages import Chain, load_recipe

ROOT = Path(__file__).parents[1]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_the_recipes_are_there():
    names = {path.stem for path in RECIPES}
    assert names >= {"pig-latin", "yoda", "instruct-pythia", "lm-style", "all-settings", "pig-latin-chain"}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_says_something(path):
    settings = load_recipe(path)
    if isinstance(settings, Chain):
        assert len(settings.stages) > 1
        return
    assert (settings == Settings()) == (path.stem == "all-settings")


def test_the_commented_example_names_every_setting():
    lines = [
        line.strip().partition(":")[0] for line in example_text().splitlines() if not line.lstrip().startswith("#")
    ]
    assert sorted(set(lines) & {field.name for field in all_fields().values()}) == sorted(
        {field.name for field in all_fields().values()}
    )


def test_the_documents_are_up_to_date():
    found = stale(ROOT)
    changes = [
        line
        for name in found
        for line in difflib.unified_diff((ROOT / name).read_text().splitlines(), documents()[name].splitlines(), n=1)
    ]
    assert found == [], "run `make docs`:\n" + "\n".join(changes)


def test_a_stale_document_is_found(tmp_path):
    for name, text in documents().items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert stale(tmp_path) == []
    (tmp_path / "docs/cli.md").write_text("old")
    assert stale(tmp_path) == ["docs/cli.md"]
