"""The house as docs/architecture.md tells it: sizes of rooms, names of files, the order of imports."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "fitune"
FILES_IN_A_FOLDER = 12
# Names that several folders use on purpose: a method's two files, and a command's file, which bears the command's name.
OF_EVERY_METHOD = {"config.py", "trainer.py"}


def modules() -> list[Path]:
    return [path for path in SOURCE.rglob("*.py") if "__pycache__" not in path.parts]


def layers() -> list[list[str]]:
    """The contract's layers from the top, each a list of siblings."""
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    (contract,) = [one for one in tools["importlinter"]["contracts"] if one["type"] == "layers"]
    assert "ignore_imports" not in contract and "exclude_type_checking_imports" not in tools["importlinter"]
    return [[name.strip().removeprefix("fitune.") for name in layer.split("|")] for layer in contract["layers"]]


def test_no_folder_is_a_drawer():
    held: dict[Path, int] = defaultdict(int)
    for path in modules():
        held[path.parent] += 1
    assert {folder.name: count for folder, count in held.items() if count > FILES_IN_A_FOLDER} == {}


def test_a_files_name_says_which_file_it_is():
    places: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        room = path.relative_to(SOURCE).parts
        if path.name == "__init__.py" or (room[0] == "methods" and path.name in OF_EVERY_METHOD):
            continue
        if room[0] != "cli":  # a command's file bears the command's name
            places[path.name].append("/".join(room))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_every_package_says_what_it_is():
    silent = [
        path.parent.name
        for path in modules()
        if path.name == "__init__.py" and not (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    ]
    assert silent == []


def test_every_package_stands_in_the_contract_and_in_the_page_in_its_order():
    named = [name for layer in layers() for name in layer]
    there = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").exists()}
    there |= {path.stem for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    assert set(named) == there
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`[a-z_/.]+`(?: · )?)+) \|", page, re.MULTILINE)
    assert [re.findall(r"`([a-z_]+)(?:/|\.py)?`", row) for row in rows] == layers()


def test_settings_stop_right_below_training():
    top, api, second, third, *_ = layers()
    assert top == ["cli"] and api == ["api"] and "training" in second and third == ["config"], (
        "whatever stands below config cannot import it"
    )


def test_only_one_file_sets_attributes_of_other_libraries():
    """Assignments to an attribute of an imported module, and setattr on one."""
    found = set()
    for path in modules():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            (alias.asname or alias.name).split(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        for node in ast.walk(tree):
            targets = (
                node.targets
                if isinstance(node, ast.Assign)
                else [node.target]
                if isinstance(node, ast.AugAssign)
                else []
            )
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "setattr":
                targets = node.args[:1] if isinstance(node.args[0], ast.Name) and node.args[0].id in imported else []
                found |= {path.name} if targets else set()
                continue
            for target in targets:
                root = target
                while isinstance(root, ast.Attribute):
                    root = root.value
                if isinstance(target, ast.Attribute) and isinstance(root, ast.Name) and root.id in imported:
                    found.add(path.name)
    assert found <= {"upstream_patches.py"}
