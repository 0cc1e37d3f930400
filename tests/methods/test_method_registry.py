"""The registry of methods: its facts fit together, and the method of docs/extending.md needs a line there and nothing else."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

import fitune
from fitune.config.sections import Settings
from fitune.data.prepare import PREPARE
from fitune.methods.method import Method, RuleInputs
from fitune.methods.registry import METHODS
from fitune.planning.scenario import CHOICES

ROOT = Path(__file__).parents[2]
SRC = Path(str(fitune.__file__)).parent


@pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))
def test_the_facts_of_a_method_fit_together(method: Method) -> None:
    assert find_spec(method.trainer) is not None and method.runtime().make_trainer is not None
    assert method.reads in PREPARE and method.traced_loss in CHOICES["loss"]
    assert set(method.learning_rates) <= {"lora", "full"} and "lora" in method.learning_rates
    assert bool(method.why_lora) == ("full" not in method.learning_rates)
    assert set(method.answer_metrics) <= set(method.metrics) and method.metrics
    assert (method.section is None) == (method.settings is None)
    assert {key.partition(".")[0] for key in method.unread} <= {method.section}
    own = set(method.settings.model_fields) if method.settings else set()
    assert {key.partition(".")[2] for key in method.unread} <= own
    if method.sampling is not None:
        assert method.reads == "prompts" and set(vars(method.sampling)) <= own
        assert all(getattr(Settings(method=method.name).own, name) is None for name in vars(method.sampling))


def test_the_facts_need_no_torch() -> None:
    code = "import sys, fitune.methods.registry; print({'torch', 'transformers', 'peft'} & set(sys.modules))"
    assert run_python(code, ROOT) == "set()"


def test_what_moves_the_base_is_named_once_for_every_method() -> None:
    inputs = RuleInputs(
        method="x", tuning="lora", lora_bias="all", lora_init="pissa", loss_on="auto", batch_size=1, eval_samples=1,
        held_out=True,
    )  # fmt: skip
    assert [key for key, _, _ in inputs.moves_the_base] == ["lora.bias", "lora.init"]


# ---- no second list of methods


def lists_of_methods(source: str) -> Iterator[tuple[int, str]]:
    """Where two names of methods stand in one literal, or a setting is compared with one."""
    for node in ast.walk(ast.parse(source)):
        items = node.keys if isinstance(node, ast.Dict) else getattr(node, "elts", [])
        names = {item.value for item in items if isinstance(item, ast.Constant)} & set(METHODS)
        if len(names) > 1:
            yield node.lineno, ast.unparse(node)
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Attribute) and node.left.attr == "method":
            told = [part.value for part in ast.walk(node) if isinstance(part, ast.Constant)]
            if set(told) & set(METHODS):
                yield node.lineno, ast.unparse(node)


def test_no_other_file_lists_methods_or_asks_for_one_by_name() -> None:
    found = [
        f"{path.relative_to(SRC)}:{line}: {text}"
        for path in sorted(SRC.rglob("*.py"))
        if path.parent.name != "foreign"  # what other tools call theirs
        for line, text in lists_of_methods(path.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_a_second_list_would_be_found() -> None:
    source = 'a = {"sft": 1, "lm": 2}\nb = ("dpo", "reward")\nif settings.method == "ppo": pass\nc = {"reward": 1}'
    assert [line for line, _ in lists_of_methods(source)] == [1, 2, 3]


# ---- the method of docs/extending.md


def run_python(code: str, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(SRC.parent)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def files_of_the_page() -> dict[str, str]:
    """config.py and trainer.py as docs/extending.md shows them."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = page[page.index("## Add a method") :].partition("\n## ")[0]
    found = re.findall(
        r"<!-- src/fitune/methods/simpo/(config|trainer)\.py: [^\n]*\n\n    ```python\n(.*?)\n    ```", section, re.S
    )
    return {f"{name}.py": textwrap.dedent(code) + "\n" for name, code in found}


def test_the_page_shows_the_files() -> None:
    folder = SRC / "methods" / "simpo"
    assert files_of_the_page() == {name: (folder / name).read_text() for name in ("config.py", "trainer.py")}


@pytest.fixture(scope="module")
def newpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the page's method as a package outside of fitune, called newpo, which no registry knows."""
    folder = tmp_path_factory.mktemp("method")
    package = folder / "newpo_of_the_page"
    package.mkdir()
    (package / "__init__.py").touch()
    for name, code in files_of_the_page().items():
        code = code.replace("fitune.methods.simpo", "newpo_of_the_page")
        for old in ("simpo", "Simpo", "SIMPO"):
            code = code.replace(old, {"simpo": "newpo", "Simpo": "Newpo", "SIMPO": "NEWPO"}[old])
        (package / name).write_text(code)
    return folder


# What the registry's line does, before anything has read the registry.
LINE = """
from fitune.methods.registry import METHODS
from newpo_of_the_page.config import NEWPO
METHODS["newpo"] = NEWPO
"""


@pytest.mark.slow
def test_a_new_method_trains_two_steps(newpo: Path, neox_folder: Path, tmp_path: Path) -> None:
    words = ["cat", "barn", "mat", "piglet", "sun", "hen"]
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"say {word}", "chosen": word[::-1], "rejected": word} for word in words]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "method": "newpo", "newpo.beta": "0.5", "model.name": str(neox_folder), "model.precision": "fp32",
        "model.device": "cpu", "data.train": str(pairs), "data.eval_share": "0.34", "train.max_steps": "2",
        "train.batch_size": "2", "train.learning_rate": "0.01", "eval.best_metric": "accuracy", "eval.samples": "1",
        "eval.max_new_tokens": "4", "run.folder": str(tmp_path / "runs"), "run.name": "new",
    }  # fmt: skip
    run_python(f"{LINE}import fitune\nfitune.train(fitune.load_settings(None, {settings!r}))", newpo)
    folder = tmp_path / "runs" / "new"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (manifest["status"], manifest["method"]) == ("finished", "newpo")
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in logged if row["kind"] == "train"]
    assert len(losses) == 2 and all(math.isfinite(loss) for loss in losses)
    assert {"accuracy", "margin", "chrf"} <= next(row for row in logged if row["kind"] == "eval").keys()
    assert (folder / "adapter" / "adapter_model.safetensors").exists()


def test_a_new_method_is_in_settings_rules_plan_and_documents(newpo: Path) -> None:
    asks = f"""{LINE}
import json
import fitune
from fitune.cli.pages.doc_tables import data_forms
from fitune.cli.pages.docs import reference_text
from fitune.config.fields import all_fields
from fitune.training.plan_scenario import rows_of_length, scenario_of

def faults(**given):
    try:
        fitune.load_settings(None, {{key.replace("__", "."): value for key, value in given.items()}})
    except fitune.SettingsError as error:
        return error.faults
    return []

settings = fitune.Settings(method="newpo")
print(json.dumps({{
    "choices": all_fields()["method"].choices, "default": all_fields()["newpo.beta"].default,
    "schema": fitune.Settings.model_json_schema()["properties"]["method"]["enum"],
    "unknown": faults(method="newpoo"), "unread": faults(newpo__beta="0.5"), "wrong": faults(method="newpo", newpo__beta="-1"),
    "unmeasured": faults(method="newpo", eval__best_metric="reward"), "loss_on": faults(method="newpo", data__loss_on="all"),
    "loss": scenario_of(settings, **vars(rows_of_length(settings, 64))).loss,
    "page": "## newpo" in reference_text() and "5e-5 (dpo, orpo, simpo, kto, newpo)" in reference_text(),
    "forms": [row for row in data_forms() if "`preference`" in row],
}}))
"""
    found: dict[str, Any] = json.loads(run_python(asks, newpo))
    assert found["choices"] == found["schema"] == [*METHODS, "newpo"] and found["default"] == 2.0
    assert 'did you mean "newpo"' in found["unknown"][0]
    assert found["unread"] == ["--newpo.beta is set, and method is sft, which does not use it; remove it"]
    assert found["wrong"] == ["--newpo.beta is -1; use above 0, for example 2"]
    assert "use one of loss, accuracy, exact_match, word_accuracy, chrf" in found["unmeasured"][0]
    assert "compares whole answers" in found["loss_on"][0]
    assert found["loss"] == "pairs" and found["page"]
    assert "reward, dpo, orpo, simpo, newpo" in found["forms"][0]
