"""docs/api.md: every public name with what a caller needs; and the file tree of the README."""

from __future__ import annotations

import dataclasses
import inspect
from pathlib import Path

import fitune
from fitune.cli.pages.api_page import api_text
from fitune.cli.pages.file_tree import readme_text, tree_text


def test_every_public_name_is_on_the_page_and_has_a_docstring():
    page = api_text()
    for name in fitune.__all__:
        value = getattr(fitune, name)
        assert f"### `fitune.{name}`" in page or f"| `{name}` |" in page, name
        assert inspect.getdoc(value), name


def test_parameters_and_attributes_are_on_the_page():
    page = api_text()
    training = page.split("### `fitune.train`")[1].split("###")[0]
    assert [name for name in inspect.signature(fitune.train).parameters if name not in training] == []
    result = page.split("### `fitune.RunResult`")[1].split("###")[0]
    assert [field.name for field in dataclasses.fields(fitune.RunResult) if f"| `{field.name}` |" not in result] == []


def test_what_a_public_function_returns_is_on_the_page():
    assert "`fitune.exporting.export.Exported`" in api_text()


def test_the_tree_has_a_line_for_each_package_and_module():
    root = Path(str(fitune.__file__)).parent
    rooms = {f"{path.parent.name}/" for path in root.glob("*/__init__.py")}
    modules = {path.name for path in root.glob("*.py")} - {"__init__.py"}
    lines = [line.split(maxsplit=1) for line in tree_text().splitlines()[1:]]
    assert {name for name, _ in lines} == rooms | modules


def test_what_stands_around_the_tree_is_left_as_it_is():
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert readme_text().splitlines()[0] == text.splitlines()[0]
    assert readme_text().splitlines()[-1] == text.splitlines()[-1]
