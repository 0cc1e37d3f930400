"""A chain of runs, each starting from the last; resumed, it goes on at the stage that is not finished.

In: a `fitune.config.stages.Chain`. Out: a `RunResult` a stage that was run.
The chain's folder holds a run folder for each stage, and chain.json: every stage's settings as they were at the start.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from fitune.config.sections import Settings
from fitune.config.stages import Chain, Stage
from fitune.console import log
from fitune.distributed import together
from fitune.earlier_names import stored_with_new_names
from fitune.errors import RunError
from fitune.runs import manifest as manifests
from fitune.runs.disk_faults import write_whole
from fitune.runs.run_folder import MANIFEST, RunFolder
from fitune.runs.run_result import RunResult
from fitune.training.resume import check_same_settings
from fitune.training.run import train

CHAIN = "chain.json"


def train_chain(chain: Chain, resume: bool = False) -> list[RunResult]:
    """Run every stage that is not finished, in order; stops after one that was interrupted.

    Raises:
        RunError: the folder holds a chain and ``resume`` is off, or a finished stage had other settings.
        FituneError: whatever a stage raises; the stages before it stay finished.
    """
    together.start()
    together.by_first("the chain begins", partial(_begin, chain, resume))
    results = []
    for number, stage in enumerate(chain.stages, start=1):
        path = chain.folder / stage.name
        where = f"stage {number} of {len(chain.stages)}, {stage.name}"
        if (path / MANIFEST).is_file():
            check_same_settings(RunFolder(path), stage.settings.model_dump(mode="json"))
            if manifests.read(path / MANIFEST).get("status") == "finished":
                log(f"{where}: already finished")
                continue
            log(f"{where}: resuming")
            result = train(resume=str(path))
        else:
            log(where)
            result = train(stage.settings)
        results.append(result)
        if result.status != "finished":
            log(f"resume the chain with: fitune train --resume {chain.folder}")
            break
    return results


def _begin(chain: Chain, resume: bool) -> None:
    """Write down what the chain is, or find what it was."""
    kept = chain.folder / CHAIN
    if kept.exists() and not resume:
        raise RunError(
            f"{chain.folder} contains a chain that was started; resume it with `fitune train --resume {chain.folder}`, or choose "
            "another run.name"
        )
    chain.folder.mkdir(parents=True, exist_ok=True)
    if not kept.exists():
        listed = [{"name": stage.name, "settings": stage.settings.model_dump(mode="json")} for stage in chain.stages]
        write_whole(kept, json.dumps(listed, indent=1) + "\n")


def saved_chain(folder: Path) -> Chain | None:
    """The chain that was begun in a folder, or None when it holds none.

    Raises:
        RunError: its file is damaged.
    """
    kept = folder / CHAIN
    if not kept.is_file():
        return None
    try:
        listed = json.loads(kept.read_text(encoding="utf-8"))
        stages = tuple(Stage(one["name"], Settings(**stored_with_new_names(one["settings"], kept))) for one in listed)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{kept} is damaged: {error}; start the chain again under another run.name") from error
    return Chain(folder.name, folder, stages)
