"""A tiny random model of each family of the installed transformers through fitune: train, reopen, merge, plan, GGUF.

    python benchmarks/families.py                      # every family; writes the sheet and docs/families.md
    python benchmarks/families.py llama qwen3_5        # these alone; prints their rows
    python benchmarks/families.py --keep llama qwen3_5 # and puts them into the sheet

Two steps of LoRA in fp32 on a CPU, the layout of rows chosen as `fitune train` chooses it, answers asked before and after,
the second step taken again from the first's checkpoint, the result opened again, merged with its fidelity report, planned,
written as GGUF, and a step over int8. Each family has a process of its
own, and `LIMIT_SECONDS`. A tiny model shows whether the code of a family works, not whether a real one learns.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import sys
import tempfile
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import date
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error", OMP_NUM_THREADS="1"
)
ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from fitune.models.families.family_sheet import FAULT, NO, FamilyRow, family_sheet  # noqa: E402

LIMIT_SECONDS, WORKERS, MOST_CHARACTERS = 300, 2, 300
# Of a tiny random model, whose logits lie close together: greedy tokens turn over in 16 bits, divergence says more.
MOST_DIVERGENCE = 1e-3
PAGE, SHEET = ROOT / "docs" / "families.md", ROOT / "src" / "fitune" / "models" / "families" / "families.json"
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


def try_family(family: str, folder: Path) -> FamilyRow:
    """Everything that is tried, on a model made in `folder`."""
    from tiny_families import make_family

    from fitune.errors import FituneError

    found: dict[str, Any] = {"family": family}
    refused: list[str] = []
    faults: list[str] = []

    def attempt(what: str, tried: Callable[[], str]) -> bool:
        try:
            found[what] = tried()
        except FituneError as error:
            found[what] = NO
            refused.append(f"{what}: {_line(error)}")
        except Exception as error:  # whatever a family's code raises is what this script is to find
            found[what] = FAULT
            faults.append(f"{what}: {type(error).__name__}: {_line(error)}")
            traceback.print_exc()
        return found[what] not in (NO, FAULT)

    try:
        model = make_family(folder / family, family)
    except Exception as error:  # the configuration that this script makes up, or a package that is not installed
        why = f"no tiny model: {type(error).__name__}: {_line(error)}"
        return FamilyRow(family=family, trains="not tried", refused=(why,))
    run = folder / "runs" / "one"
    if attempt("trains", lambda: train(model, folder)):
        found["packs"] = layout_of((folder / "log").read_text(encoding="utf-8"))
        found["adapted"] = adapted_names(run / "adapter")
        attempt("resumes", lambda: resume(run))
        attempt("reopens", lambda: reopen(run))
        attempt("merges", lambda: merge(run, model))
        attempt("attention", lambda: attention(model))
        attempt("quantized", lambda: quantized(model, folder))
    attempt("plans", lambda: plan(model))
    attempt("gguf", lambda: gguf(run if found["trains"] == "yes" else model, folder))
    told = tuple(text for text in refused if not text.startswith("gguf: llama.cpp's converter"))
    return FamilyRow(**found, refused=told, faults=tuple(faults))


def _line(error: Exception) -> str:
    text = re.sub(r"\S*/fitune-[\w-]+/(\S+)", r"\1", " ".join(str(error).split()))
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"


def settings_of(base: Path, folder: Path, name: str, **changed: Any) -> Any:
    """Settings of a run of two steps on ten rows."""
    import fitune

    words = ["cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee"]
    rows = [{"prompt": f"say {word}", "completion": word[::-1]} for word in words]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings: dict[str, Any] = {
        "fit": "off",
        "model": {"name": str(base), "precision": "fp32", "device": "cpu"},
        "data": {"train": str(data), "eval_share": 0.2},
        "train": {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-2},
        "eval": {"samples": 2, "max_new_tokens": 4},
        "run": {"folder": str(folder / "runs"), "name": name, "checkpoint_steps": 1},
    }
    for section, values in changed.items():
        settings[section] = {**settings.get(section, {}), **values}
    return fitune.Settings(**settings)


def train(model: Path, folder: Path) -> str:
    """Two steps and the questions asked before and after them."""
    import fitune

    result = fitune.train(settings_of(model, folder, "one"))
    before, after = (result.before or {})["loss"], (result.after or {})["loss"]
    assert isfinite(after) and after != before, f"the held-out loss was {before} and is {after}"
    return "yes"


def resume(run: Path) -> str:
    """The second step once more from the checkpoint of the first, as after kill -9: losses and adapter to the last bit."""
    from shutil import rmtree

    import fitune
    from fitune.runs import manifest
    from fitune.runs.run_folder import RunFolder, read_rows

    folder = RunFolder.open(run)

    def ending() -> tuple[bytes, list[dict[str, Any]]]:
        kept = ("step", "kind", "loss", "grad_norm", "tokens", "exact_match")
        rows = [{name: row.get(name) for name in kept} for row in read_rows(folder.metrics)]
        return (folder.adapter / "adapter_model.safetensors").read_bytes(), rows

    weights, numbers = ending()
    rmtree(folder.adapter)
    for checkpoint in folder.checkpoints.glob("checkpoint-*"):
        if checkpoint.name != "checkpoint-1":
            rmtree(checkpoint)
    assert (folder.checkpoints / "checkpoint-1").is_dir(), "there is no checkpoint of step 1"
    manifest.update(folder.manifest, status="running")
    fitune.train(resume=folder.path)
    again, after = ending()
    assert after == numbers, f"the numbers were {numbers} and are {after}"
    assert again == weights, "the adapters differ"
    return "bit for bit"


def attention(model: Path) -> str:
    """The kernel that transformers took, and the kinds of layers."""
    import torch
    from transformers import AutoConfig

    from fitune.models.towers import auto_class

    config = AutoConfig.from_pretrained(model)
    with torch.device("meta"):
        made = auto_class(config).from_config(config)
    text = made.config.get_text_config()
    kinds = dict.fromkeys(getattr(text, "layer_types", None) or ("full_attention",))
    chosen = getattr(text, "_attn_implementation", None) or "eager"
    return f"{chosen}: {', '.join(kind.removesuffix('_attention') for kind in kinds)}"


def quantized(model: Path, folder: Path) -> str:
    """A step over int8; then what of the base is stored in it."""
    import torch
    from transformers import AutoConfig

    import fitune
    from fitune.models.mixture.experts import PACKED, expert_parameters, is_placeholder
    from fitune.models.quantization.quantize import QuantizationConfig, quantize_in_place, quantized_layers
    from fitune.models.towers import auto_class

    few = {"model": {"precision": "bf16", "quantization": "int8"}, "train": {"max_steps": 1}, "eval": {"samples": 0}}
    result = fitune.train(settings_of(model, folder, "int8", **few))
    assert isfinite((result.after or {})["loss"]), "the loss over int8 is not finite"
    config = AutoConfig.from_pretrained(model)
    made = auto_class(config).from_pretrained(model, dtype=torch.bfloat16)
    quantize_in_place(made, QuantizationConfig("int8"), torch.bfloat16, "cpu")
    layers, experts = quantized_layers(made), expert_parameters(made).values()
    held = ["linear layers"] if any(not name.endswith(PACKED) for name in layers) else []
    packed = [is_placeholder(stack) for stack in experts]
    held += ["experts"] if any(packed) else []
    left = "" if all(packed) else "; experts stay in 16 bits"
    return (", ".join(held) or "nothing") + left


def layout_of(log: str) -> str:
    """How the run laid out its rows, from what it said."""
    for line in log.splitlines():
        if line.startswith("rows are packed"):
            return "tree" if "computed once" in line else "rows"
    reasons = [line for line in log.splitlines() if line.startswith(("rows are padded", "packing ("))]
    reason = reasons[0].partition(": ")[2] if reasons else "no reason given"
    return f"padded: {reason}"


def adapted_names(adapter: Path) -> tuple[str, ...]:
    """Last names of the layers that have a LoRA."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as tensors:
        names = [name.split(".lora_")[0] for name in tensors.keys() if ".lora_" in name]  # noqa: SIM118
    return tuple(sorted({name.removesuffix(".base_layer").split(".")[-1] for name in names}))


def reopen(run: Path) -> str:
    """The adapter over its base, asked once."""
    import fitune
    from fitune.evaluation.generation import answer

    target = fitune.open_target(str(run), device="cpu", precision="fp32")
    answer(target.model, target.renderer, [[{"role": "user", "content": "say cat"}]], max_new_tokens=4)
    return "yes"


def merge(run: Path, model: Path) -> str:
    """The merged copy: its fidelity, and whether it holds every weight that the base has."""
    import fitune
    from fitune.models.load_config import load_config
    from fitune.models.source import resolve
    from fitune.models.towers import FAILS_ON_TEXT

    text_alone = load_config(resolve(str(model))).model_type in FAILS_ON_TEXT
    done = fitune.export(str(run), "merged", num_prompts=2, device="cpu")
    missing = set[str]() if text_alone else names_in(model) - names_in(done.folder)
    assert not missing, f"the merged model lacks {len(missing)} weights of its base, {sorted(missing)[0]} first"
    worst = max(row.divergence for row in done.report.rows)
    assert worst < MOST_DIVERGENCE, f"the merged model diverges by {worst} nats a token"
    assert done.report.prompts_same == done.report.prompts, done.report.first_difference
    return f"{worst:.0e}, the text model alone" if text_alone else f"{worst:.0e}"


def names_in(folder: Path) -> set[str]:
    """Names of the weights in a folder's safetensors."""
    from safetensors import safe_open

    found: set[str] = set()
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            found |= set(tensors.keys())
    return found


def plan(model: Path) -> str:
    """Traced, or by the closed form."""
    from fitune.errors import NotTraced
    from fitune.planning.closed_form import untraced_plan
    from fitune.planning.model_config import config_of
    from fitune.planning.predict import Card, predict
    from fitune.planning.scenario import Scenario

    config = config_of(str(model), None)
    card = Card("card", 24 * 2**30, (8, 9), 2**29)
    scenario = Scenario(batch=1, seq_len=32)
    try:
        made = predict(config.values, scenario, card, only_plans=True)
    except NotTraced as error:
        untraced_plan(config.values, scenario, card, str(error))
        return f"closed form: {_line(error)}"
    real = count_parameters(model)
    assert abs(made.total_parameters - made.trained_parameters - real) <= 0.01 * real, (
        f"the plan counts {made.total_parameters - made.trained_parameters} base parameters, the model has {real}"
    )
    return "traced"


def count_parameters(folder: Path) -> int:
    """Parameters of the model that is trained; buffers in its file are none."""
    import torch
    from transformers import AutoConfig

    from fitune.models.towers import auto_class

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        return auto_class(config).from_config(config).num_parameters()


def gguf(name: Path, folder: Path) -> str:
    """The file, read back."""
    import fitune

    fitune.export(str(name), "gguf", folder / "gguf", num_prompts=2, device="cpu")
    return "yes"


# ---- a process for each, and the page


def in_a_process(family: str) -> FamilyRow:
    """`try_family` in a process of its own, which begins with everything imported."""
    with tempfile.TemporaryDirectory(prefix=f"fitune-{family}-") as scratch:
        folder = Path(scratch)
        process = multiprocessing.get_context("fork").Process(target=_child, args=(family, folder))
        process.start()
        process.join(LIMIT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return FamilyRow(family=family, trains=FAULT, faults=(f"not done within {LIMIT_SECONDS} s",))
        if keep := os.environ.get("FAMILIES_LOGS"):
            Path(keep).mkdir(parents=True, exist_ok=True)
            (Path(keep) / f"{family}.log").write_bytes((folder / "log").read_bytes())
            (Path(keep) / f"{family}.json").write_bytes((folder / "result.json").read_bytes())
        result = folder / "result.json"
        if not result.is_file():
            return FamilyRow(family=family, trains=FAULT, faults=(f"the process ended with {process.exitcode}",))
        made = FamilyRow.from_dict(json.loads(result.read_text(encoding="utf-8")))
        print(*(value for value in asdict(made).values()), sep=" | ")
        sys.stdout.flush()
        return made


def _child(family: str, folder: Path) -> None:
    import torch

    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 2)
    torch.set_num_threads(1)
    os.environ["FITUNE_CACHE"] = str(folder / "cache")
    made = try_family(family, folder)
    (folder / "result.json").write_text(json.dumps(asdict(made)), encoding="utf-8")


def write(rows: list[FamilyRow]) -> None:
    """The sheet, and the page that is made from it."""
    from fitune.cli.pages.family_page import families_text

    held = {
        "made": date.today().isoformat(),
        "versions": {name: version(name) for name in PACKAGES},
        "rows": [asdict(row) for row in sorted(rows, key=lambda row: row.family)],
    }
    SHEET.write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    family_sheet.cache_clear()
    PAGE.write_text(families_text(), encoding="utf-8")


def main() -> None:
    """Try the families named, or all, and write the page when it was all."""
    from tiny_families import TRIED

    import fitune
    import fitune.planning.trace.trace

    for name in fitune.__all__:
        getattr(fitune, name)
    named = [name for name in sys.argv[1:] if name != "--keep"]
    with ThreadPoolExecutor(WORKERS) as pool:
        rows = list(pool.map(in_a_process, named or TRIED))
    if "--keep" in sys.argv:
        made = {row.family: row for row in rows}
        rows = list({**family_sheet().rows, **made}.values())
    if not named or "--keep" in sys.argv:
        write(rows)
        print(f"wrote {SHEET} and {PAGE}")


if __name__ == "__main__":
    main()
