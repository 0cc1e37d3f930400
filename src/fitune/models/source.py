"""Where a model's files are: a name is resolved once, before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.errors import ModelError, did_you_mean
from fitune.models.builtin import BUILTIN, fetch


@dataclass(frozen=True)
class ModelSource:
    """A model found: `path` is what `from_pretrained` takes (a folder or a hub id)."""

    kind: str
    name: str
    path: str
    revision: str | None = None
    gguf_file: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for the manifest and for the adapter's `fitune.json`."""
        return {"kind": self.kind, "name": self.name, "revision": self.revision, "gguf_file": self.gguf_file}


def resolve(name: str, revision: str | None = None) -> ModelSource:
    """Find a model by built-in name, local folder, GGUF file or hub id, in this order.

    Raises:
        ModelError: nothing of that name; a folder that holds no model; a damaged GGUF file.
    """
    if not name.strip():
        raise ModelError(f"model.name is empty; name a folder, a hub id or a built-in model: {', '.join(BUILTIN)}")
    if name in BUILTIN:
        return ModelSource("builtin", name, str(fetch(name)))
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, name)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no GGUF file at {name}{_neighbours(path)}")
        from fitune.models.gguf import check_gguf

        check_gguf(path)
        return ModelSource("gguf", name, str(path.parent), gguf_file=path.name)
    if path.is_file():
        raise ModelError(f"{name} is a file; name the model's folder, a .gguf file, a hub id or a built-in model")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f'there is no folder "{name}"{_neighbours(path)}')
    if "/" not in name and (hint := did_you_mean(name, BUILTIN)):
        raise ModelError(f'there is no model "{name}"{hint}; built in are: {", ".join(BUILTIN)}')
    return ModelSource("hub", name, name, revision=revision)


def _folder(path: Path, name: str) -> ModelSource:
    """A local folder with a config and safetensors weights."""
    if (path / "adapter_config.json").exists():
        raise ModelError(
            f"{name} holds an adapter, not a model; `fitune chat {name}` talks to it, "
            "and model.name takes the base it was trained on"
        )
    if not (path / "config.json").exists():
        raise ModelError(f"{name} is not a model folder: it has no config.json")
    if not list(path.glob("*.safetensors")):
        pickled = [file.name for file in (*path.glob("*.bin"), *path.glob("*.pt"), *path.glob("*.pth"))]
        if pickled:
            raise ModelError(
                f"{name} holds pickled weights ({pickled[0]}), which can run code when they are loaded; "
                "convert them to safetensors"
            )
        raise ModelError(f"{name} has a config.json and no weights (*.safetensors)")
    return ModelSource("folder", name, str(path))


def _neighbours(path: Path) -> str:
    """The nearest name in the same folder, as a hint."""
    parent = path.parent
    return did_you_mean(path.name, [entry.name for entry in parent.iterdir()]) if parent.is_dir() else ""
