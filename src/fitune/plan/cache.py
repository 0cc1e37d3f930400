"""Traces kept on disk, by content: a second question of the same kind does not import torch.

The key covers the config, the scenario, the versions of torch, transformers, peft and bitsandbytes, and our own source.
Imports nothing but the standard library; versions are read from package metadata.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from fitune.plan.scenario import Scenario

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def cached_trace(config: dict[str, Any], scenario: Scenario, capability: tuple[int, int]) -> dict[str, Any]:
    """The trace's plain values, from the cache or made now.

    Args:
        config: a transformers config as a dict, "model_type" in it.
    """
    path = folder() / f"{content_key(config, scenario, capability)}.json.gz"
    try:
        with gzip.open(path, "rt") as file:
            return json.load(file)
    except (OSError, ValueError):
        pass  # not there, or damaged by a crash: made again
    values = make_trace(config, scenario, capability)
    write(path, values)
    return values


def make_trace(config: dict[str, Any], scenario: Scenario, capability: tuple[int, int]) -> dict[str, Any]:
    """Trace now."""
    from fitune.plan.trace import trace

    return trace(as_config(config), scenario, capability).to_dict()


def as_config(values: dict[str, Any]) -> Any:
    """A transformers config object."""
    from transformers import AutoConfig

    values = dict(values)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def write(path: Path, values: dict[str, Any]) -> None:
    """Write whole or not at all; a cache that cannot be written is no fault."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        with gzip.open(part, "wt", compresslevel=1) as file:
            json.dump(values, file, separators=(",", ":"))
        part.replace(path)
    except OSError:
        pass


def folder() -> Path:
    """Where traces are kept: FITUNE_CACHE or ~/.cache/fitune."""
    return Path(os.environ.get("FITUNE_CACHE") or Path.home() / ".cache" / "fitune") / "plans"


def content_key(config: dict[str, Any], scenario: Scenario, capability: tuple[int, int]) -> str:
    """Hash of everything that the trace depends on."""
    text = json.dumps([config, scenario.key(), capability, versions(), source_hash()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Installed versions, without importing the packages."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Hash of our own code that a trace runs."""
    root = Path(__file__).parent
    files = [*sorted(root.glob("*.py")), root.parent / "adapters" / "attach.py", root.parent / "train" / "loss.py"]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.exists())).hexdigest()[:16]
