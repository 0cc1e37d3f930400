"""From a run to where it will be used: an adapter, a merged model, a GGUF file, an Ollama Modelfile; and how faithful it is.

In: a run, an adapter or a model. Out: a new folder with the copy and `fidelity.json`, whole or not at all.
Knows nothing of training and of the command line. Begin reading at `export.py`.

`fitune.export("demo", "gguf")` is public and this package bears the same name, so the package itself can be called, as
`fitune.train` can.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fitune.export.export import Exported


class _Room(ModuleType):
    """This package's type: a module that can be called."""

    def __call__(self, name: str, to: str, out: Path | None = None, **options: Any) -> Exported:
        """`fitune.export.export.export`, imported at the first call."""
        from fitune.export.export import export

        return export(name, to, out, **options)


sys.modules[__name__].__class__ = _Room
