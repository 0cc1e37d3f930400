"""Traces kept on disk, by content: a second question of the same kind does not import torch.

The key covers the config, the scenario, the versions of torch, transformers, peft and bitsandbytes, and our own source.
Imports no torch; versions are read from package metadata.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib
import json
import traceback
from collections.abc import Callable
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypedDict

from fitune.cache_folder import cache_folder, keep
from fitune.errors import FituneError, ModelError, NotTraced
from fitune.planning.scenario import Scenario

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from fitune.planning.trace.trace import Trace

# Of our own code, what a trace runs: whole packages, and the few modules of others that it calls. How a plan is shown is
# no part of it.
TRACED = (
    "planning/trace/*.py",
    "ops/**/*.py",
    "models/quantization/*.py",
    "planning/scenario.py",
    "adapters/inject.py",
    "models/heads.py",
    "models/towers.py",
    "data/packing/*.py",
)
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


class TraceValues(TypedDict):
    """A `fitune.planning.trace.trace.Trace` as plain values; JSON makes lists of its tuples."""

    order: list[int]
    moments: list[int]
    moment_names: list[str]
    sizes: list[int]
    categories: list[str]
    phases: list[tuple[int, str]]
    trained_parameters: int
    total_parameters: int
    managed_bytes: int
    host_bytes: int
    work: dict[str, list[list[str | int]]]
    notes: tuple[str, ...]


def cached_trace(
    config: dict[str, object], scenario: Scenario, capability: tuple[int, int], only_plans: bool = False
) -> TraceValues:
    """The trace's plain values, from the cache or made now.

    Args:
        config: a transformers config as a dict, "model_type" in it.
        only_plans: this process will not train, so what only training needs is not imported.
    """
    path = folder() / f"{content_key(config, scenario, capability)}.json.gz"
    values = read(path)
    if values is None:
        if only_plans:
            import_bitsandbytes_without_compiler()
        values = make_trace(config, scenario, capability)
        write(path, values)
    return values


def import_bitsandbytes_without_compiler() -> None:
    """bitsandbytes 0.50 wraps four functions in torch.compile as it is imported, and that imports torch's compiler.

    1.2 to 1.7 s for functions that a trace never runs. With another backend named while it is imported, torch imports
    none of it. https://docs.pytorch.org/docs/main/generated/torch.compiler.set_default_backend.html; to be dropped when
    bitsandbytes compiles at the first call.
    """
    import torch

    if not hasattr(torch.compiler, "set_default_backend"):  # torch before 2.15
        return
    before = torch.compiler.get_default_backend()
    torch.compiler.set_default_backend("eager")
    try:
        importlib.import_module("bitsandbytes")
    except ImportError:  # a plan of 16-bit weights needs none
        pass
    finally:
        torch.compiler.set_default_backend(before)


def read(path: Path) -> TraceValues | None:
    """The values of a file of the cache; None when it is not there, or was damaged by a crash."""
    try:
        with gzip.open(path, "rt") as file:
            return json.load(file)
    except (OSError, ValueError, EOFError):
        return None


def values_of(config: PretrainedConfig | dict[str, object]) -> dict[str, object]:
    """A config as a dict, "model_type" in it; a dict as it is."""
    return config if isinstance(config, dict) else {**config.to_dict(), "model_type": config.model_type}


def make_trace(config: dict[str, object], scenario: Scenario, capability: tuple[int, int]) -> TraceValues:
    """Trace a card's run now.

    Raises:
        NotTraced, ModelError, FituneError: as `trace_model`.
    """

    def traced(made: PretrainedConfig) -> Trace:
        from fitune.planning.trace.trace import trace

        return trace(made, scenario, capability)

    return trace_model(config, traced)


def trace_model(config: dict[str, object], traced: Callable[[PretrainedConfig], Trace]) -> TraceValues:
    """A trace's plain values.

    Args:
        traced: a transformers config object → `Trace`.

    Raises:
        NotTraced: the model's code cannot be traced; the message names the call.
        ModelError: a config that transformers refuses, or of no causal language model.
        FituneError: the scenario does not go with this model.
    """
    kind = config["model_type"]
    try:
        made = as_config(config)
    except Exception as error:  # a config class checks its values as it likes
        if "Unrecognized model" not in str(error):
            raise ModelError(f'the config of type "{kind}" is refused: {" ".join(str(error).split())}') from error
        version = versions()["transformers"]
        raise NotTraced(
            f'a model of type "{kind}" cannot be traced: transformers {version} does not know it'
        ) from error
    try:
        return traced(made).to_dict()
    except FituneError:
        raise
    except Exception as error:  # the model's own code, which may raise anything
        if "Unrecognized configuration class" in str(error):
            raise ModelError(
                f'a model of type "{kind}" is not a causal language model, which is all that fitune trains'
            ) from error
        raise NotTraced(f'the code of "{kind}" cannot be traced: {_call(error)}: {_first_line(error)}') from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _call(error: Exception) -> str:
    """Where the model's code was: "modeling_x.py, line 12, `self.scan(state)`"."""
    frames = traceback.extract_tb(error.__traceback__)
    inside = [frame for frame in frames if "modeling" in Path(frame.filename).name] or frames
    frame = inside[-1]
    return f"{Path(frame.filename).name}, line {frame.lineno}, `{(frame.line or frame.name).strip()[:120]}`"


def as_config(values: dict[str, object]) -> PretrainedConfig:
    """A transformers config object."""
    from transformers import AutoConfig

    options: dict[str, Any] = dict(values)
    config = AutoConfig.for_model(options.pop("model_type"), **options)
    text = config.get_text_config()
    if text is not config and "tie_word_embeddings" not in values and not text.tie_word_embeddings:
        # Mistral 3: its class ties by default, its files hold a head of its own, and loading then unties the two.
        config.tie_word_embeddings = False
    return config


def write(path: Path, values: TraceValues) -> None:
    """Keep a trace's plain values."""

    def fill(file: IO[bytes]) -> None:
        with gzip.open(file, "wt", compresslevel=1) as packed:
            json.dump(values, packed, separators=(",", ":"))

    keep(path, fill)


def folder() -> Path:
    """Where traces are kept."""
    return cache_folder() / "plans"


def content_key(config: dict[str, object], scenario: Scenario, capability: tuple[int, int]) -> str:
    """Hash of everything that the trace depends on."""
    text = json.dumps([config, scenario.key(), capability, versions(), source_hash()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@lru_cache(maxsize=1)
def versions() -> dict[str, str]:
    """Installed versions, without importing the packages."""
    found: dict[str, str] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


@lru_cache(maxsize=1)
def source_hash() -> str:
    """Hash of our own code that a trace runs."""
    root = Path(__file__).parents[1]
    files = sorted(file for pattern in TRACED for file in root.glob(pattern))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
