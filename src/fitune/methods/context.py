"""`RunContext`: what a method is given to make its model, its trainer and its result from.

Plain values and the objects of lower rooms; no settings object reaches a method but its own section.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from transformers import TrainingArguments

from fitune.data.prepare import PreparedData
from fitune.data.render.renderer import Renderer
from fitune.models.load_base import LoadedBase
from fitune.runs.run_folder import RunFolder
from fitune.section import Section
from fitune.trainers.arguments import Schedule
from fitune.trainers.callbacks import StopOnInterrupt
from fitune.trainers.worst_case_batch import Batches

Own = TypeVar("Own", bound=Section)


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """One run, ready to be trained."""

    folder: RunFolder
    base: LoadedBase
    data: PreparedData
    renderer: Renderer
    device: str
    """cpu, cuda or mps."""
    section: Section | None
    """The method's own settings; read them with `own`."""
    runs_folder: str
    """Folder of all runs, where other runs are looked for by name."""

    # ---- what is trained
    tuning: str
    """lora or full."""
    lora: Mapping[str, Any]
    """Options of a fresh adapter, keywords of `fitune.adapters.inject.lora_config`."""
    start: Path | None
    """The folder of the adapter that training goes on with; None begins a fresh one."""

    # ---- the steps
    arguments: TrainingArguments
    schedule: Schedule
    batch_size: int
    """Rows of an optimizer step."""
    epochs: float
    """Passes over the training rows, also where the steps were limited instead."""
    seed: int
    packing: Literal["auto", "tree", "rows", "off"]
    """The layout of rows that was asked for."""
    tiled_mlp: bool = False
    """Blocks are computed in tiles along the sequence."""
    activation_offloading: bool = False
    """Inputs of checkpointed layers lie on the host until the backward pass."""

    # ---- beside the steps
    interrupt: StopOnInterrupt
    best_metric: str
    patience: int | None
    keep_checkpoints: int
    eval_samples: int
    """Held-out rows answered at each evaluation."""
    eval_new_tokens: int
    """Longest of those answers in tokens."""

    def own(self, kind: type[Own]) -> Own:
        """The method's own section."""
        assert isinstance(self.section, kind)
        return self.section

    def batches(self, mode: str) -> Batches:
        """How this run deals out its rows when they are laid out as ``mode``."""
        return Batches(
            batch_rows=self.batch_size,
            micro_rows=self.schedule.micro_batch_rows,
            seed=self.seed,
            epochs=self.epochs,
            mode=mode,
        )
