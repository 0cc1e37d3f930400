"""Training: prepared rows and a loaded model → a run folder with an adapter or a model.

In: `fitune.config.Settings` at the door (run.py); plain values behind it.
Out: `RunResult`, and what `fitune.runs` keeps on disk.
Knows nothing of the command line. The loss (loss.py) and the step (trainer.py) are callable on their own: the memory
plan traces them on the meta device, tree packing replaces the batch.

`fitune.train(settings)` is public and this package bears the same name, so the package itself can be called: whichever
of the two is imported first, both work.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fitune.config import Settings
    from fitune.train.run import RunResult


class _Room(ModuleType):
    """This package's type: a module that can be called."""

    def __call__(
        self, settings: Settings | None = None, resume: bool | str | Path = False, exclude: Sequence[str] = ()
    ) -> RunResult:
        """`fitune.train.run.train`, imported at the first call."""
        from fitune.train.run import train

        return train(settings, resume, exclude)


sys.modules[__name__].__class__ = _Room
