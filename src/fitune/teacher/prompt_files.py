"""What is asked of the teacher: text files with `$name` for what is put in, the package's or the user's own."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from string import Template

from fitune.errors import DataError

# File → the names that it has to hold.
PROMPTS: dict[str, tuple[str, ...]] = {
    "instruction": ("examples",),
    "answer": ("prompt",),
    "evolve": ("prompt",),
    "question": ("passage",),
    "grounded_answer": ("passage", "prompt"),
    "judge": ("prompt", "completion", "rubric"),
}


def read_prompts(folder: Path | None = None) -> dict[str, Template]:
    """Every prompt; those that a folder of the user's has come from there.

    Raises:
        DataError: a file that lacks one of its names, or has another.
    """
    found: dict[str, Template] = {}
    for name, needed in PROMPTS.items():
        own = folder / f"{name}.txt" if folder else None
        text = own.read_text(encoding="utf-8") if own and own.is_file() else _shipped(name)
        template = Template(text.strip())
        held = template.get_identifiers() if template.is_valid() else []
        if set(held) != set(needed):
            raise DataError(
                f"{own} has to hold {', '.join(f'${one}' for one in needed)} and nothing else behind a $; it holds "
                f"{', '.join(f'${one}' for one in held) or 'none'} (write $$ for a dollar sign)"
            )
        found[name] = template
    return found


def write_prompts(folder: Path) -> list[Path]:
    """Copy the package's prompts into a folder, to be changed; files that are there stay."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for name in PROMPTS:
        path = folder / f"{name}.txt"
        if not path.exists():
            path.write_text(_shipped(name), encoding="utf-8")
            written.append(path)
    return written


def _shipped(name: str) -> str:
    return (files("fitune.teacher") / "prompts" / f"{name}.txt").read_text(encoding="utf-8")
