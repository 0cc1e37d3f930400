"""A tiny random model of each family of the installed transformers through fitune: train, reopen, merge, plan, GGUF.

    python benchmarks/families.py                      # every family; writes docs/families.md
    python benchmarks/families.py llama qwen3_5        # these alone; prints their rows

Two steps of LoRA in fp32 on a CPU, the layout of rows chosen as `fitune train` chooses it, answers asked before and after,
the result opened again, merged with its fidelity report, planned, and written as GGUF. Each family has a process of its
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
from dataclasses import asdict, dataclass, field
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

LIMIT_SECONDS, WORKERS, MOST_CHARACTERS = 120, 2, 300
# Of a tiny random model, whose logits lie close together: greedy tokens turn over in 16 bits, divergence says more.
MOST_DIVERGENCE = 1e-3
PAGE = ROOT / "docs" / "families.md"
PACKAGES = ("torch", "transformers", "peft")


@dataclass
class Outcome:
    """What became of a family: a word for each thing that was tried, or one sentence of why not."""

    family: str
    trains: str = "–"
    packs: str = "–"
    adapted: str = "–"
    reopens: str = "–"
    merges: str = "–"
    plans: str = "–"
    gguf: str = "–"
    refused: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def try_family(family: str, folder: Path) -> Outcome:
    """Everything that is tried, on a model made in `folder`."""
    from tiny_families import make_family

    from fitune.errors import FituneError

    made = Outcome(family)

    def attempt(what: str, tried: Callable[[], str]) -> bool:
        try:
            setattr(made, what, tried())
        except FituneError as error:
            setattr(made, what, "no")
            made.refused.append(f"{what}: {_line(error)}")
        except Exception as error:  # whatever a family's code raises is what this script is to find
            setattr(made, what, "FAULT")
            made.faults.append(f"{what}: {type(error).__name__}: {_line(error)}")
            traceback.print_exc()
        return getattr(made, what) not in ("no", "FAULT")

    try:
        model = make_family(folder / family, family)
    except Exception as error:  # the configuration that this script makes up, or a package that is not installed
        made.trains = "not tried"
        made.refused.append(f"no tiny model: {type(error).__name__}: {_line(error)}")
        return made
    run = folder / "runs" / "one"
    if attempt("trains", lambda: train(model, folder)):
        made.packs = layout_of((folder / "log").read_text(encoding="utf-8"))
        made.adapted = adapted_names(run / "adapter")
        attempt("reopens", lambda: reopen(run))
        attempt("merges", lambda: merge(run, model))
    attempt("plans", lambda: plan(model))
    attempt("gguf", lambda: gguf(run if made.trains == "yes" else model, folder))
    made.refused = [text for text in made.refused if not text.startswith("gguf: llama.cpp's converter")]
    return made


def _line(error: Exception) -> str:
    text = re.sub(r"\S*/fitune-[\w-]+/(\S+)", r"\1", " ".join(str(error).split()))
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} …"


def train(model: Path, folder: Path) -> str:
    """Two steps and the questions asked before and after them."""
    import fitune

    words = ["cat", "barn", "mat", "piglet", "sun", "hen", "foxes", "cow", "ant", "bee"]
    rows = [{"prompt": f"say {word}", "completion": word[::-1]} for word in words]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    settings: dict[str, Any] = {
        "fit": "off",
        "model": {"name": str(model), "precision": "fp32", "device": "cpu"},
        "data": {"train": str(data), "eval_share": 0.2},
        "train": {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-2},
        "eval": {"samples": 2, "max_new_tokens": 4},
        "run": {"folder": str(folder / "runs"), "name": "one"},
    }
    result = fitune.train(fitune.Settings(**settings))
    before, after = (result.before or {})["loss"], (result.after or {})["loss"]
    assert isfinite(after) and after != before, f"the held-out loss was {before} and is {after}"
    return "yes"


def layout_of(log: str) -> str:
    """How the run laid out its rows, from what it said."""
    for line in log.splitlines():
        if line.startswith("rows are packed"):
            return "tree" if "computed once" in line else "rows"
    reasons = [line for line in log.splitlines() if line.startswith(("rows are padded", "packing ("))]
    reason = reasons[0].partition(": ")[2] if reasons else "no reason given"
    return f"padded: {reason}"


def adapted_names(adapter: Path) -> str:
    """Last names of the layers that have a LoRA."""
    from safetensors import safe_open

    with safe_open(adapter / "adapter_model.safetensors", "pt") as tensors:
        names = [name.split(".lora_")[0] for name in tensors.keys() if ".lora_" in name]  # noqa: SIM118
    return ", ".join(sorted({name.removesuffix(".base_layer").split(".")[-1] for name in names}))


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


def in_a_process(family: str) -> Outcome:
    """`try_family` in a process of its own, which begins with everything imported."""
    with tempfile.TemporaryDirectory(prefix=f"fitune-{family}-") as scratch:
        folder = Path(scratch)
        process = multiprocessing.get_context("fork").Process(target=_child, args=(family, folder))
        process.start()
        process.join(LIMIT_SECONDS)
        if process.is_alive():
            process.kill()
            process.join()
            return Outcome(family, trains="FAULT", faults=[f"not done within {LIMIT_SECONDS} s"])
        if keep := os.environ.get("FAMILIES_LOGS"):
            Path(keep).mkdir(parents=True, exist_ok=True)
            (Path(keep) / f"{family}.log").write_bytes((folder / "log").read_bytes())
            (Path(keep) / f"{family}.json").write_bytes((folder / "result.json").read_bytes())
        result = folder / "result.json"
        if not result.is_file():
            return Outcome(family, trains="FAULT", faults=[f"the process ended with {process.exitcode}"])
        made = Outcome(**json.loads(result.read_text(encoding="utf-8")))
        print(
            family, made.trains, made.packs, made.merges, made.plans, made.gguf, *made.refused, *made.faults, sep=" | "
        )
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


HEAD = """# Model families

Made by `python benchmarks/families.py` on {day} with {versions}: do not edit.

A tiny random model of each family takes two steps of LoRA in fp32 on a CPU, is asked before and after, opened again, merged,
planned and written as GGUF; a tiny model shows whether the code of a family works, not whether a real one learns.

- **packs**: how the rows of a step are laid out, as chosen before step one by comparing losses with the plain forward pass.
  `tree`: rows share what they begin with; `rows`: side by side; otherwise padded, and why.
- **merges**: divergence of the merged 16-bit model from the adapter over its base, in nats a token. Every weight of the
  base is in the copy, vision towers included.
- **plans**: `traced`: the memory plan runs the model's own code; otherwise it counts by the closed form, and says so.
- **GGUF**: written by fitune's own writer and read back.

Of {tried} families: {trains} train, {packs} of them packed ({tree} as a tree), {reopens} open again, {merges} merge,
{plans} have a traced plan, {gguf} go to GGUF. Not tried here, since no tiny model of it could be made: {untried}. Refused with a
sentence before training: {refused}. Failed in another way: {faults}.

| family | trains | packs | LoRA on | merges | plans | GGUF |
|---|---|---|---|---|---|---|
"""


def page(rows: list[Outcome]) -> str:
    """The page's text."""
    trained = [row for row in rows if row.trains == "yes"]
    text = HEAD.format(
        day=date.today().isoformat(),
        versions=", ".join(f"{name} {version(name)}" for name in PACKAGES),
        tried=len(rows),
        trains=len(trained),
        packs=sum(row.packs in ("tree", "rows") for row in trained),
        tree=sum(row.packs == "tree" for row in trained),
        reopens=sum(row.reopens == "yes" for row in rows),
        merges=sum(row.merges not in ("–", "no", "FAULT") for row in rows),
        plans=sum(row.plans == "traced" for row in rows),
        gguf=sum(row.gguf == "yes" for row in rows),
        untried=sum(row.trains == "not tried" for row in rows),
        refused=sum(row.trains == "no" for row in rows),
        faults=sum(bool(row.faults) for row in rows),
    )
    for row in sorted(rows, key=lambda row: row.family):
        plans = "traced" if row.plans == "traced" else row.plans.partition(":")[0]
        cells = (f"`{row.family}`", row.trains, row.packs, row.adapted, row.merges, plans, row.gguf)
        text += "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    said = [
        (row.family, why) for row in sorted(rows, key=lambda row: row.family) for why in (*row.refused, *row.faults)
    ]
    said += [(row.family, f"plans: {row.plans}") for row in rows if row.plans.startswith("closed form:")]
    if said:
        text += "\n## What was refused or failed\n\n"
        text += "".join(f"- `{family}`: {why}\n" for family, why in sorted(said))
    return text


def main() -> None:
    """Try the families named, or all, and write the page when it was all."""
    from tiny_families import TRIED

    import fitune
    import fitune.planning.trace.trace

    for name in fitune.__all__:
        getattr(fitune, name)
    named = sys.argv[1:]
    with ThreadPoolExecutor(WORKERS) as pool:
        rows = list(pool.map(in_a_process, named or TRIED))
    if not named:
        PAGE.write_text(page(rows), encoding="utf-8")
        print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
