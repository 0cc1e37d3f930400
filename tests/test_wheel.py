"""The wheel, built from the clone and used outside it: nothing is read from the clone.

Needs a package index for the build backend. The dependencies are those of this environment, lent to a fresh one by a
.pth file, so that torch is not downloaded again; a .pth file inside the lent folder, such as that of an editable
installation, is not followed. That fitune itself comes from the wheel is tested.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.wheel
CLONE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Installed:
    """A wheel, and the environment in which it is installed."""

    wheel: Path
    environment: Path
    elsewhere: Path

    def run(self, command: str, *words: str) -> str:
        """What a command of the environment prints, run in a folder outside the clone."""
        path = self.environment / ("Scripts" if os.name == "nt" else "bin") / command
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([path, *words], cwd=self.elsewhere, env=variables, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", folder, CLONE], check=True)
    (wheel,) = folder.glob("*.whl")
    environment, elsewhere = folder / "environment", folder / "elsewhere"
    elsewhere.mkdir()
    venv.create(environment, with_pip=True)
    packages = sysconfig.get_path("purelib", "venv", {"base": str(environment)})
    (Path(packages) / "lent.pth").write_text(sysconfig.get_path("purelib"))
    found = Installed(wheel, environment, elsewhere)
    found.run("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall", str(wheel))
    return found


def test_every_file_of_the_package_is_in_the_wheel(installed):
    tracked = subprocess.run(
        ["git", "ls-files", "src/fitune"], cwd=CLONE, capture_output=True, text=True, check=True
    ).stdout.split()
    with zipfile.ZipFile(installed.wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("fitune/")}
    assert packed == {name.removeprefix("src/") for name in tracked}
    assert {Path(name).suffix for name in packed} >= {".py", ".csv", ".json", ".txt", ".typed"}


def test_fitune_is_the_wheels(installed):
    told = installed.run(
        "python", "-c", "import fitune, importlib.metadata as m; print(fitune.__file__, m.version('fitune'))"
    )
    file, version = told.split()
    assert Path(file).is_relative_to(installed.environment)
    assert installed.wheel.name.startswith(f"fitune-{version}-")
    assert version in installed.run("fitune", "--version")


def test_help_names_every_command(installed):
    from fitune.cli import COMMANDS

    told = installed.run("fitune", "--help")
    assert [name for name in COMMANDS if f"\n  {name} " not in told] == []


def test_settings_are_written_out_and_load(installed):
    assert "lora:" in installed.run("fitune", "settings", "example")
    assert "`lora.rank`" in installed.run("fitune", "settings", "reference")
    assert "properties" in json.loads(installed.run("fitune", "settings", "schema"))


def test_the_plan_has_its_cards_and_models(installed):
    told = installed.run("fitune", "plan", "smollm2-135m-instruct", "--gpu", "T4", "--seq-len", "128", "--json")
    assert json.loads(told)["traced"] is True


def test_the_demo_runs(installed, tiny_llama):
    words = ("--model", str(tiny_llama), "--steps", "1", "--also-rows", "2", "--json")
    told = json.loads(installed.run("fitune", "demo", *words))
    assert told["Harvard sentences"]["rows"] == 2
    assert (installed.elsewhere / "runs/demo/report.html").is_file()
