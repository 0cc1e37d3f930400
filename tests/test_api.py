"""The public names of `fitune`, and that they cost nothing until they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fitune


def test_every_public_name_is_there_and_listed_once():
    assert len(set(fitune.__all__)) == len(fitune.__all__)
    assert [name for name in fitune.__all__ if getattr(fitune, name, None) is None] == []
    assert set(fitune.__all__) <= set(dir(fitune))


def test_what_type_checkers_see_is_what_is_public():
    source = ast.parse(Path(str(fitune.__file__)).read_text())
    block = next(node for node in source.body if isinstance(node, ast.If))
    seen = {alias.name for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == set(fitune.__all__)


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(fitune, "tune")


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_fitune_imports_neither_torch_nor_transformers():
    heavy = "print([m for m in ('torch', 'transformers', 'peft', 'datasets', 'pydantic') if m in sys.modules])"
    assert run_python(f"import sys, fitune, fitune.errors; {heavy}") == ["[]"]


@pytest.mark.slow
def test_train_can_be_called_whichever_is_imported_first():
    told = "print(callable(fitune.train), fitune.ops.label_loss.__name__)"
    assert run_python(f"import fitune; fitune.train; import fitune.ops.label_loss; {told}") == [
        "True",
        "fitune.ops.label_loss",
    ]
    assert run_python(f"import fitune.ops.label_loss, fitune; {told}") == ["True", "fitune.ops.label_loss"]


@pytest.mark.slow
def test_export_can_be_called_whichever_is_imported_first():
    told = "print(callable(fitune.export), fitune.exporting.export.__name__)"
    assert run_python(f"import fitune; fitune.export; import fitune.exporting.export; {told}") == [
        "True",
        "fitune.exporting.export",
    ]
    assert run_python(f"import fitune.exporting.export, fitune; {told}") == ["True", "fitune.exporting.export"]
