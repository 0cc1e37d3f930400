"""`fitune doctor`: what is installed, what this machine has, what is missing, and the line that mends it."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from importlib import metadata, util
from pathlib import Path

import click

from fitune.cli.options.shared import JSON, print_json

# Package → what it is for, and how it is had; those that fitune needs are installed with it.
OPTIONAL = {
    "flash_attn": ("model.attention flash_attention_2", "pip install flash-attn --no-build-isolation"),
    "tensorboard": ("run.report_to tensorboard", "pip install tensorboard"),
    "wandb": ("run.report_to wandb", "pip install wandb"),
    "trackio": ("run.report_to trackio", "pip install trackio"),
}
LEAST_FREE_BYTES = 10 * 2**30


@click.command()
@JSON
def doctor(as_json: bool) -> None:
    """Tell what fitune finds here: versions, device, kernels, disk, hub; and what is missing.

    \b
    fitune doctor
    fitune doctor --json          for a bug report; holds no token, no user name and no path of yours
    """
    found = examined()
    if as_json:
        print_json(found)
        return
    from fitune.console import stdout_console

    for name, value in found.items():
        if isinstance(value, dict):
            stdout_console().print(name, style="bold", markup=False)
            for key, one in value.items():
                stdout_console().print(f"  {key:<18}{one}", markup=False)
    advice = found["advice"]
    assert isinstance(advice, list)
    stdout_console().print("to do" if advice else "nothing is missing", style="bold", markup=False)
    for line in advice:
        stdout_console().print(f"  {line}", markup=False)


def examined() -> dict[str, object]:
    """Sections of plain values, and `advice`: a line for each thing that could be better."""
    from fitune.runs.manifest import versions

    advice: list[str] = []
    return {
        "versions": {
            "python": sys.version.split()[0],
            "system": f"{platform.system()} {platform.machine()}",
            **versions(),
        },
        "device": _device(advice),
        "optional": {name: _optional(name) for name in OPTIONAL},
        "disk": _disk(advice),
        "hub": _hub(advice),
        "small run": _small_run(),
        "advice": advice,
    }


def _device(advice: list[str]) -> dict[str, object]:
    import torch

    from fitune.models.hardware import choose_precision, detect
    from fitune.sizes import size_in

    here = detect("auto")
    precision = choose_precision("auto", here)
    found: dict[str, object] = {
        "training on": f"{here.device} ({here.name}), {here.cores} cores",
        "memory": f"{size_in(here.free_bytes, here.memory_bytes)} of {size_in(here.memory_bytes, here.memory_bytes)} free",
        "precision": f"{precision.name}: {precision.reason}",
        "torch built for": f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU",
    }
    if here.device == "cuda":
        found["capability"] = ".".join(map(str, here.capability or ()))
    elif Path("/proc/driver/nvidia/version").exists():
        advice.append(
            "an NVIDIA driver is here, but torch finds no GPU: run nvidia-smi, and install torch for its CUDA version"
        )
    elif torch.version.cuda:
        advice.append(
            "torch's CUDA wheels on a machine without a GPU take 4 GB more: uv pip install --torch-backend cpu torch"
        )
    return found


def _optional(name: str) -> str:
    use, how = OPTIONAL[name]
    if util.find_spec(name) is None:
        return f"not installed; for {use}: {how}"
    try:
        return metadata.version(name.replace("_", "-"))
    except metadata.PackageNotFoundError:
        return "installed"


def _disk(advice: list[str]) -> dict[str, object]:
    from fitune.cache_folder import cache_folder
    from fitune.sizes import size_in

    found: dict[str, object] = {}
    for name, folder in (("runs", Path.cwd()), ("cache", cache_folder())):
        there = next(one for one in (folder, *folder.parents) if one.exists())
        usage = shutil.disk_usage(there)
        found[name] = f"{size_in(usage.free, usage.total)} of {size_in(usage.total, usage.total)} free"
        if usage.free < LEAST_FREE_BYTES:
            advice.append(f"little free disk for {name}: checkpoints and exports of a 7B model take 30 GB")
        if not os.access(there, os.W_OK):
            advice.append(f"the folder of {name} cannot be written")
    return found


def _hub(advice: list[str]) -> dict[str, object]:
    from huggingface_hub import constants, get_token

    found: dict[str, object] = {"logged in": "yes" if get_token() else "no", "offline": constants.HF_HUB_OFFLINE}
    if not get_token():
        advice.append("gated models need a login to the Hugging Face Hub: hf auth login")
    return found


def _small_run() -> dict[str, object]:
    """The plan of LoRA on the built-in model, which says that planning works here."""
    from fitune.api.plan_call import plan
    from fitune.errors import FituneError

    try:
        made = plan("smollm2-135m-instruct", budget="16GiB", seq_len=512)
    except FituneError as error:
        return {"plan": f"failed: {error}"}
    return {"plan": f"LoRA on smollm2-135m-instruct, 8 rows of 512 tokens: {made.peak_bytes / 2**30:.2f} GiB on a GPU"}
