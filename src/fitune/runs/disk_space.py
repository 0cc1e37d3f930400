"""Room on the disk: enough for every checkpoint of a run, known before its first step."""

from __future__ import annotations

import shutil
from pathlib import Path

from fitune.errors import RunError

GIB = 2**30
# Files that do not grow with the model: trainer state, random states, logs, report.
SLACK_BYTES = 16 * 2**20


def bytes_needed(
    trained_parameters: int, state_bytes: int, keep_checkpoints: int, final_bytes: int, weight_bytes: float = 4.0
) -> dict[str, int]:
    """What a run will write.

    Args:
        trained_parameters: number of trained values.
        state_bytes: what the optimizer keeps of all of them.
        keep_checkpoints: checkpoints kept. Two more can exist for a moment: the best one beside the newest, and the
            one being written before an older one is removed.
        final_bytes: the adapter or model that the run ends with.
        weight_bytes: bytes a trained value.

    Returns:
        Bytes by part: checkpoint (one), checkpoints (all of them at the worst moment), final, slack, total.
    """
    one = round(trained_parameters * weight_bytes) + state_bytes
    checkpoints = one * (max(keep_checkpoints, 2) + 1)
    parts = {"checkpoint": one, "checkpoints": checkpoints, "final": final_bytes, "slack": SLACK_BYTES}
    return {**parts, "total": checkpoints + final_bytes + SLACK_BYTES}


def check_space(folder: Path, needed: dict[str, int], held_bytes: int = 0) -> None:
    """Refuse to start when the disk cannot hold the run.

    Args:
        folder: an existing folder on the disk in question.
        needed: from `bytes_needed`.
        held_bytes: what the run's checkpoints hold already (a resumed run).

    Raises:
        RunError: with the numbers.
    """
    free = shutil.disk_usage(folder).free
    wanted = max(needed["total"] - held_bytes, SLACK_BYTES)
    if free < wanted:
        raise RunError(
            f"no space for the run: {folder} has {size(free)} free and {size(wanted)} are needed "
            f"({size(needed['checkpoint'])} a checkpoint, {size(needed['checkpoints'])} for all, "
            f"{size(needed['final'])} for the result); free some, lower run.keep_checkpoints or lora.rank, "
            f"or set run.folder to another disk"
        )


def size(count: int) -> str:
    """``1.5 GiB``, ``300 MiB``."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
