"""Where a model's files are: a name is resolved once, before anything is loaded."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Required, TypedDict
from urllib.parse import urlsplit

from fitune.errors import ModelError, did_you_mean
from fitune.models.builtin import BUILTIN, fetch
from fitune.models.weight_files.safetensors_check import check_files, check_weight_files


class Origin(TypedDict, total=False):
    """Where a base came from, as `fitune.json` says it; plain PEFT knows name and revision alone."""

    kind: str
    name: Required[str]
    revision: Required[str | None]
    gguf_file: str | None


@dataclass(frozen=True)
class ModelSource:
    """A model found: `path` is what `from_pretrained` takes (a folder or a hub id).

    `pickled`: False takes safetensors alone, True pickled weights (asked for), None whichever a hub model has.
    """

    kind: str
    name: str
    path: str
    revision: str | None = None
    gguf_file: str | None = None
    pickled: bool | None = False

    def to_dict(self) -> Origin:
        """Plain values for the manifest and for the adapter's `fitune.json`."""
        return {"kind": self.kind, "name": self.name, "revision": self.revision, "gguf_file": self.gguf_file}


def resolve(name: str, revision: str | None = None, allow_pickled: bool = False) -> ModelSource:
    """Find a model by built-in name, local folder, GGUF file or hub id, in this order.

    Args:
        allow_pickled: take pickled weights where there are no safetensors.

    Raises:
        ModelError: nothing of that name; a folder that holds no model, or damaged or pickled weights; a damaged GGUF
            file.
    """
    if not name.strip():
        raise ModelError(f"model.name is empty; name a folder, a hub id or a built-in model: {', '.join(BUILTIN)}")
    if name in BUILTIN:
        return ModelSource(kind="builtin", name=name, path=str(fetch(name)))
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, name, allow_pickled)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise ModelError(f"there is no GGUF file at {name}{_neighbours(path)}")
        from fitune.models.weight_files.gguf_reader import check_gguf

        check_gguf(path)
        return ModelSource(kind="gguf", name=name, path=str(path.parent), gguf_file=path.name)
    if path.is_file():
        raise ModelError(f"{name} is a file; name the model's folder, a .gguf file, a hub id or a built-in model")
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f'there is no folder "{name}"{_neighbours(path)}')
    if "/" not in name and (hint := did_you_mean(name, BUILTIN)):
        raise ModelError(f'there is no model "{name}"{hint}; built in are: {", ".join(BUILTIN)}')
    if not _may_be_had(name):
        raise ModelError(
            f'there is no folder or built-in model "{name}", and the Hugging Face Hub cannot be reached from here (its '
            f"address has no name service); built in are: {', '.join(BUILTIN)}"
        )
    return ModelSource(kind="hub", name=name, path=name, revision=revision, pickled=None if allow_pickled else False)


def _may_be_had(name: str) -> bool:
    """False for a hub model that is not in the hub's cache while the hub has no address: its client would try for minutes."""
    from huggingface_hub import constants, try_to_load_from_cache

    proxied = any(os.environ.get(one) for one in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if constants.HF_HUB_OFFLINE or proxied or isinstance(try_to_load_from_cache(name, "config.json"), str):
        return True  # the client answers at once, or by another way
    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def _folder(path: Path, name: str, allow_pickled: bool) -> ModelSource:
    """A local folder with a config and weights."""
    if (path / "adapter_config.json").exists():
        raise ModelError(
            f"{name} holds an adapter, not a model; `fitune chat {name}` talks to it, "
            "and model.name takes the base it was trained on"
        )
    check_files(path)
    if not (path / "config.json").exists():
        raise ModelError(f"{name} is not a model folder: it has no config.json")
    return ModelSource(kind="folder", name=name, path=str(path), pickled=check_weight_files(path, name, allow_pickled))


def _neighbours(path: Path) -> str:
    """The nearest name in the same folder, as a hint."""
    parent = path.parent
    return did_you_mean(path.name, [entry.name for entry in parent.iterdir()]) if parent.is_dir() else ""
