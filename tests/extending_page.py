"""What the recipes of docs/extending.md say, for the tests that try them: code blocks, and Python with a line in a registry."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import fitune

ROOT = Path(__file__).parents[1]
SRC = Path(str(fitune.__file__)).parents[1]


def code_of(section: str, file: str) -> str:
    """The code block of ``file`` (below src/fitune) in the section "Add a …" of the page."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    text = page[page.index(f"## {section}\n") :].partition("\n## ")[0]
    (code,) = re.findall(rf"`src/fitune/{re.escape(file)}`[^\n]*\n\n    ```python\n(.*?)\n    ```", text, re.S)
    return textwrap.dedent(code) + "\n"


def run_python(code: str, folder: Path) -> str:
    """What a new process prints that sees ``folder`` beside fitune. What it says on stderr is in the failure."""
    environment = {
        **os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(SRC)]), "OMP_NUM_THREADS": "1",
        "FITUNE_CACHE": str(folder / "cache"),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
