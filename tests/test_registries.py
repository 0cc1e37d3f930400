"""Each list of names has one owner: no second table of a registry's names stands anywhere else in src."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

import fitune
from fitune.answer_metrics import ANSWER_METRICS
from fitune.data.read.forms import DATA_FORMS
from fitune.exporting.forms import EXPORT_FORMS
from fitune.exporting.gguf.gguf_types import GGUF_TYPES
from fitune.methods.registry import METHODS
from fitune.models.quantization import QUANTIZATIONS
from fitune.ops.optimizers import OPTIMIZERS, PLANNED

SRC = Path(str(fitune.__file__)).parent
# Registry → its names. The owner's own file or folder needs no exception: it writes each name once, in its object.
REGISTRIES: dict[str, Collection[str]] = {
    "export forms": EXPORT_FORMS,
    "GGUF types": GGUF_TYPES,
    "data forms": DATA_FORMS,
    "methods": METHODS,
    "optimizers": OPTIMIZERS,
    "optimizers of plans": PLANNED,
    "quantizations": QUANTIZATIONS,
    "answer metrics": ANSWER_METRICS,
}


def tables(source: str) -> Iterator[tuple[int, set[str]]]:
    """(line, words) of every list, tuple, set and dict of words, those of `Literal[...]` among them."""
    for node in ast.walk(ast.parse(source)):
        items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        words = {item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)}
        if words:
            yield node.lineno, words


def seconds(names: Collection[str]) -> list[str]:
    """Where more than half of the names stand together."""
    found = []
    for path in sorted(SRC.rglob("*.py")):
        for line, words in tables(path.read_text(encoding="utf-8")):
            if 2 * len(words & set(names)) > len(names):
                found.append(f"{path.relative_to(SRC)}:{line}")
    return found


@pytest.mark.parametrize("registry", REGISTRIES)
def test_no_second_table_of_a_registrys_names(registry: str):
    assert seconds(REGISTRIES[registry]) == []


def test_a_second_table_would_be_found():
    listed = dict(tables('x: Literal["f16", "q8_0", 3]\ny = {"f16": 1, **z}\nf(("a",))'))
    assert listed == {1: {"f16", "q8_0"}, 2: {"f16"}, 3: {"a"}}
