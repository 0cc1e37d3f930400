"""Where the tables of `--grid` and `--ladder` go: to the terminal, and as a picture into a file where one is named."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 130  # characters of a line in a file


@dataclass(frozen=True)
class Shown:
    """Files to write beside what is printed; None writes none."""

    title: str
    svg_file: str | None = None
    html_file: str | None = None

    @contextmanager
    def console(self) -> Generator[Console]:
        """Prints to the terminal, and writes the files at the end."""
        from fitune.console import log, stdout_console

        files = [file for file in (self.svg_file, self.html_file) if file]
        if not files:
            yield stdout_console()
            return
        import io

        from rich.console import Console

        record = Console(record=True, width=WIDTH, file=io.StringIO(), highlight=False, force_terminal=True)
        yield record
        stdout_console().print(record.export_text(clear=False), markup=False, end="")
        if self.svg_file:
            record.save_svg(self.svg_file, title=self.title, clear=False)
        if self.html_file:
            record.save_html(self.html_file, clear=False)
        for file in files:
            log(f"wrote {file}")
