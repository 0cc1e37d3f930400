"""The last words of a run: a few held-out rows before and after, the scores, and the commands that come next.

In: the folder of a finished run. Out: lines for a terminal.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from fitune.runs import manifest as manifests
from fitune.runs.run_folder import MANIFEST, SAMPLES, read_samples

ROWS = 3
MARGIN, LABEL = 2, 11


@dataclass(frozen=True)
class AnsweredTwice:
    """A held-out row: its prompt, the answers before and after training, the reference."""

    prompt: str
    before: str
    after: str
    reference: str


def held_out_rows(folder: Path) -> list[AnsweredTwice]:
    """The rows that were answered before and after training, in the order of the data."""
    samples = read_samples(folder / SAMPLES)
    before = {row["row"]: row["answer"] for row in samples if row["moment"] == "before"}
    after = [row for row in samples if row["moment"] == "after"]
    return [AnsweredTwice(row["asked"], before.get(row["row"], ""), row["answer"], row["wanted"]) for row in after]


def last_words(folder: Path, runs_folder: str = "runs", width: int | None = None) -> list[str]:
    """What a finished run shows at its end.

    Args:
        runs_folder: where commands look for a run by its name.
        width: characters of a line; None takes the terminal's.
    """
    width = width or shutil.get_terminal_size((100, 24)).columns
    manifest = manifests.read(folder / MANIFEST)
    lines: list[str] = []
    rows = held_out_rows(folder)
    for row in rows[:ROWS]:
        said = (
            ("prompt", row.prompt),
            ("before", row.before),
            ("after", row.after),
            ("reference", row.reference),
        )
        lines += ["", *(f"{'':{MARGIN}}{name:<{LABEL}}{_in_a_line(text, width)}" for name, text in said if text)]
    if lines:
        count = "1 held-out row" if len(rows) == 1 else f"{min(ROWS, len(rows))} of {len(rows)} held-out rows"
        lines = [f"{count}, before and after training:", *lines, ""]
    if scores := score_line(manifest.get("results", {})):
        lines.append(scores)
    return [*lines, "", "next:", *(f"{'':{MARGIN}}{line}" for line in next_commands(folder, manifest, runs_folder))]


def score_line(results: manifests.Results) -> str:
    """``held-out rows: loss 3.21 → 0.81, word accuracy 0 → 0.71``; empty where nothing was measured twice."""
    before, after = results.get("before") or {}, results.get("after") or {}
    both = [name for name in after if name in before]
    said = ", ".join(f"{name.replace('_', ' ')} {before[name]:.3g} → {after[name]:.3g}" for name in both)
    return f"held-out rows: {said}" if said else ""


def next_commands(folder: Path, manifest: manifests.Manifest, runs_folder: str = "runs") -> list[str]:
    """What to type next, each with what it does."""
    name = folder.name if folder.parent == Path(runs_folder) and runs_folder == "runs" else str(folder)
    if manifest.get("method") == "reward":
        found = [(f"fitune score {name} --data FILE", "score answers or pairs")]
    else:
        found = [
            (f"fitune chat {name}", "talk to it; /base and /adapter switch sides"),
            (f"fitune evaluate {name} --data FILE", "measure it on other rows"),
            (f"fitune export {name} --to gguf --type q8_0", "or adapter, merged, ollama"),
        ]
    found.append((str(folder / "report.html"), "curves, answers and settings, for a browser"))
    longest = max(len(command) for command, _ in found)
    return [f"{command:<{longest}}  {why}" for command, why in found]


def _in_a_line(text: str, width: int) -> str:
    flat = " ".join(text.split())
    room = max(width - MARGIN - LABEL, 20)
    return flat if len(flat) <= room else flat[: room - 1] + "…"
