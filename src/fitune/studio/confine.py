"""Which files a request may name. In: a word of an address or a form. Out: a path inside the folders that the person
opened, or a refusal.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fitune.errors import FituneError

OWN = ".studio"  # what the studio itself writes below the folder of runs


class Refused(FituneError):
    """A request that names what it may not, or that there is none of; ``status`` is that of HTTP."""

    def __init__(self, text: str, status: int = 404):
        self.status = status
        super().__init__(text)


@dataclass(frozen=True)
class Folders:
    """The folders of a studio, absolute. ``opened`` holds what may be read; uploads go to ``data``."""

    runs: Path
    data: Path
    opened: tuple[Path, ...]

    @property
    def own(self) -> Path:
        """Forms, logs and queue of the runs that were started from the page."""
        return self.runs / OWN

    def run(self, name: str) -> Path:
        """The folder of a run, ``NAME`` or ``CHAIN/STAGE``.

        Raises:
            Refused: no such run, or a name that leads out of the folder of runs.
        """
        path = self.place(name)
        if not path.is_dir():
            raise Refused(f'there is no run "{name[:80]}" in {self.runs}')
        return path

    def place(self, name: str) -> Path:
        """Where a run of that name is or would be.

        Raises:
            Refused: a name that leads out of the folder of runs.
        """
        parts = name.split("/")
        if len(parts) > 2 or any(not is_plain_name(part) for part in parts):
            raise Refused(f'there is no run "{name[:80]}"')
        path = self.runs.joinpath(*parts)
        if not _inside(path, self.runs):
            raise Refused(f'there is no run "{name[:80]}" in {self.runs}')
        return path

    def file(self, name: str) -> Path:
        """An existing file or folder that the person opened, named as on the command line.

        Raises:
            Refused: it is not there, or outside.
        """
        try:
            path = (Path.cwd() / Path(name).expanduser()).resolve()
        except (OSError, ValueError, RuntimeError) as error:
            raise Refused(f'"{name[:80]}" is no path', 400) from error
        if not any(_inside(path, folder) for folder in self.opened):
            names = ", ".join(map(str, self.opened))
            raise Refused(
                f'"{name[:80]}" is outside the opened folders ({names}); restart `fitune studio` with --open FOLDER',
                403,
            )
        if not path.exists():
            raise Refused(f'"{name[:80]}" does not exist')
        return path


def is_plain_name(name: str) -> bool:
    """Whether a word names an entry of a folder: no slashes, no leading dot, nothing that cannot be printed."""
    return 0 < len(name) <= 200 and not name.startswith(".") and not set(name) & set("/\\\0") and name.isprintable()


def _inside(path: Path, folder: Path) -> bool:
    """Whether a path lies in a folder once links are followed."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        return False
