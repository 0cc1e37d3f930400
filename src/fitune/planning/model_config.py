"""A model's name → the values of its config: what the plan asks about. No weight is read, nothing heavy imported.

In: a built-in name, a folder, a config.json, a GGUF file, or a hub id with its revision. Out: `ModelConfig`.
transformers is imported for a GGUF file only, the hub's client when a config is not in its cache.
"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

from fitune.errors import ModelError, did_you_mean

# Of a config's values these say where it comes from, and none of them what is computed: they would only miss the cache.
BESIDE = ("_name_or_path", "_model_name_or_path", "transformers_version", "architectures")
# Sizes under the names that model families give them.
SIZES = (
    "vocab_size", "hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "n_inner", "num_hidden_layers",
    "n_layer", "n_layers", "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "n_positions", "num_local_experts", "num_experts",
)  # fmt: skip
WIDTH = ("hidden_size", "n_embd", "d_model")
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class ModelConfig:
    """A model as the plan knows it."""

    name: str
    """As the user wrote it."""
    values: dict[str, Any]
    """The config as a dict, "model_type" in it."""
    origin: str
    """Where the values come from, in words."""
    notes: tuple[str, ...] = ()

    @property
    def context_tokens(self) -> int | None:
        """The longest sequence that the model knows positions for; None when its config sets no limit."""
        return self._first(CONTEXT)

    @property
    def width(self) -> int:
        """The hidden size; transformers' usual 4,096 when the config leaves it to its class."""
        return self._first(WIDTH) or 4096

    def _first(self, keys: tuple[str, ...]) -> int | None:
        both = (self.values, self.values.get("text_config") or {})
        return next((values[key] for values in both for key in keys if values.get(key)), None)


def config_of(name: str, revision: str | None = None) -> ModelConfig:
    """The config of a model by built-in name, config file, folder, GGUF file or hub id, in this order.

    Raises:
        ModelError: nothing of that name, an unreachable hub, a file that is no model's config.
    """
    name = name.strip()
    builtin = json.loads((files("fitune.planning") / "builtin_configs.json").read_text(encoding="utf-8"))
    if not name:
        raise ModelError("the model's name is empty; name a hub id, a folder, a config.json or a built-in model")
    if name in builtin:
        return ModelConfig(name, builtin[name], "built in")
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path, name)
    if path.suffix.lower() == ".gguf":
        return _gguf(path, name, revision)
    if path.is_file():
        return read_config(path, name)
    if path.suffix == ".json" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        what = "file" if path.suffix else "folder"
        near = did_you_mean(path.name, [one.name for one in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise ModelError(f'there is no {what} "{name}"{near}')
    if "/" not in name and (hint := did_you_mean(name, builtin)):
        raise ModelError(f'there is no model "{name}"{hint}; built in are: {", ".join(builtin)}')
    return _hub(name, revision)


def read_config(path: Path, name: str, origin: str | None = None) -> ModelConfig:
    """The config in a JSON file.

    Raises:
        ModelError: not JSON, no model's config, or a size below 1.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_hook=_number)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise ModelError(
            f'{path} is not a model config: it has no "model_type" (a transformers config.json names its architecture '
            'there, for example "llama")'
        )
    for where in (values, values.get("text_config") or {}):
        for key in SIZES:
            size = where.get(key)
            if isinstance(size, int | float) and (size < 1 or size != int(size)):
                raise ModelError(f"{path}: {key} is {size}; use a whole number, 1 or more")
    kept = {key: value for key, value in values.items() if key not in BESIDE}
    notes: tuple[str, ...] = ()
    if stored := kept.pop("quantization_config", None):
        method = stored.get("quant_method", "a method of its own") if isinstance(stored, dict) else stored
        notes = (f"the model's files are quantized ({method}); planned as its unquantized original would be loaded",)
    return ModelConfig(name, kept, origin or str(path), notes)


def _number(value: dict[str, Any]) -> Any:
    """What transformers writes for a number that JSON lacks: {"__float__": "Infinity"}."""
    return float(value["__float__"]) if value.keys() == {"__float__"} else value


def _folder(path: Path, name: str) -> ModelConfig:
    """A model folder; its weights need not be there."""
    if (path / "config.json").is_file():
        return read_config(path / "config.json", name)
    if (path / "adapter_config.json").exists():
        try:
            base = json.loads((path / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError):
            base = "the base it was trained on"
        raise ModelError(f"{name} holds an adapter, not a model; plan its base: {base}")
    raise ModelError(f"{name} is not a model folder: it has no config.json")


def _gguf(path: Path, name: str, revision: str | None) -> ModelConfig:
    """A GGUF file's header, read as transformers does."""
    from fitune.models.load_config import load_config
    from fitune.models.source import resolve

    config = load_config(resolve(name, revision), False)
    values = {**config.to_dict(), "model_type": config.model_type}
    return ModelConfig(name, {key: value for key, value in values.items() if key not in BESIDE}, f"header of {path}")


def _hub(name: str, revision: str | None) -> ModelConfig:
    """A hub model's config: from the hub's cache on this machine, or that one file downloaded."""
    at = f"hub, revision {revision or 'main'}"
    if (cached := _in_hub_cache(name, revision or "main")) is not None:
        return read_config(cached, name, f"{at} (in the cache)")
    try:
        _look_up_host()
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(name, "config.json", revision=revision)
    except Exception as error:  # the client and what lies below it raise many kinds; each means the same to the user
        raise ModelError(_unreachable(name, revision, error)) from error
    return read_config(Path(path), name, at)


def _look_up_host() -> None:
    """Fail now where there is no network: the hub's client would try for half a minute. A proxy looks up by itself."""
    from huggingface_hub import constants

    if not getproxies() and not constants.HF_HUB_OFFLINE:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)


def _in_hub_cache(name: str, revision: str) -> Path | None:
    """config.json in the hub's cache, by its documented layout; the client takes a second to import."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    ref = folder / "refs" / revision
    try:
        commit = ref.read_text(encoding="utf-8").strip()
    except OSError:
        commit = revision  # a commit's hash
    path = folder / "snapshots" / commit / "config.json"
    return path if path.is_file() else None


def _unreachable(name: str, revision: str | None, error: Exception) -> str:
    kind = type(error).__name__
    at = f" at revision {revision}" if revision else ""
    if kind == "GatedRepoError":
        why = "it is gated: ask for access on its page, then `hf auth login`"
    elif kind in ("RepositoryNotFoundError", "HFValidationError"):
        why = "the hub has no model of that name (or it is private: `hf auth login`)"
    elif kind == "RevisionNotFoundError":
        why = "the hub has no such revision"
    elif kind in ("EntryNotFoundError", "RemoteEntryNotFoundError"):
        why = "it has no config.json (a GGUF repository? name the model that it was made from)"
    else:
        first = next(iter(str(error).strip().splitlines()), kind)
        why = f"the hub cannot be reached: {first}"
    return (
        f'the config of "{name}"{at} cannot be read: {why}. A config.json from anywhere will do, no weights are '
        "needed: fitune plan path/to/config.json"
    )
