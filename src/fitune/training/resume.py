"""Continuing a run: is it still the same run, and from which checkpoint does it go on.

In: the run folder, the settings asked for now. Out: the checkpoint, or a `RunError` that names what changed.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from fitune.config.sections import Settings
from fitune.console import log, warn
from fitune.errors import RunError
from fitune.runs import manifest as manifests
from fitune.runs.checkpoints import complete_checkpoints, damaged_file, drop_incomplete, read_extra_state, step_of
from fitune.runs.compare import flat, read_settings
from fitune.runs.manifest import ModelFacts
from fitune.runs.run_folder import RunFolder
from fitune.training.plan_scenario import with_changes

# Changing these leaves the training what it was. A data file may move: its contents are compared by hash.
FREE = (
    "run.",
    "model.device",
    "data.train",
    "data.eval",
    "train.micro_batch_size",
    "train.gradient_checkpointing",
    "train.tiled_mlp",
    "train.activation_offloading",
    "fit",
    "memory.",
    "eval.every_steps",
    "eval.samples",
    "eval.max_new_tokens",
    "eval.patience",
    "rl.reward_seconds",
    "rl.keep_samples",
)


def with_fit_of(run: RunFolder, settings: Settings) -> Settings:
    """The settings with what the fit ladder changed when the run began; the same choice holds to its end."""
    changes = manifests.read(run.manifest).get("memory", {}).get("ladder", {}).get("changes", {})
    asked = flat(settings.model_dump(mode="json"))
    return with_changes(settings, {key: one["is"] for key, one in changes.items() if asked.get(key) == one["was"]})


def check_same_settings(run: RunFolder, asked: dict[str, object]) -> None:
    """Refuse to resume under settings that would make it another run.

    A setting that came after the run began has its default there.

    Raises:
        RunError: names every setting that differs, with both values.
    """
    before, now = flat(Settings().model_dump(mode="json")) | flat(read_settings(run)), flat(asked)
    changed = [
        f"{key} was {_shown(before.get(key))} and is {_shown(now.get(key))}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not _is_free(key)
    ]
    if changed:
        raise RunError(
            f"{run.path} cannot be resumed with other settings: {'; '.join(changed)}. "
            f"Restore them (`fitune train --resume {run.path}` uses those of the run), or start a new run"
        )


def check_same_facts(run: RunFolder, data_hashes: dict[str, str], model: ModelFacts) -> None:
    """Refuse to resume when data or base model have changed under the run; warn of other package versions.

    Raises:
        RunError: names what changed.
    """
    manifest = manifests.read(run.manifest)
    # By contents and in order (training rows, held-out rows): a file may have moved.
    hashes = list(manifest.get("data", {}).get("hashes", {}).values())
    changed = [] if hashes == list(data_hashes.values()) else ["the data"]
    base, now = manifest.get("model", ModelFacts()), model
    changed += [
        f"the base model's {name}"
        for name in ("fingerprint", "template_hash", "precision")
        if base.get(name) != now.get(name)
    ]
    if base.get("continues", {}).get("sha256") != now.get("continues", {}).get("sha256"):
        changed.append("the adapter that it continues")
    digests = [[one["sha256"] for one in facts.get("merged", ())] for facts in (base, now)]
    if digests[0] != digests[1]:
        changed.append("an adapter that is merged into the base")
    if changed:
        raise RunError(
            f"{run.path} cannot be resumed: {' and '.join(changed)} changed since it began; "
            "restore the original, or start a new run"
        )
    old, new = manifest.get("versions", {}), manifests.versions()
    for package in ("torch", "transformers", "peft"):
        if old.get(package) != new.get(package):
            warn(f"{package} was {old.get(package)} when this run began and is {new.get(package)}: losses may differ")


def checkpoint_to_resume(run: RunFolder) -> Path | None:
    """The newest whole checkpoint, or None to begin anew; unfinished ones are removed and the logs cut back to it."""
    for broken in drop_incomplete(run.checkpoints):
        log(f"ignoring {broken.name}: it is incomplete")
    checkpoint = _newest_undamaged(run)
    step = step_of(checkpoint) if checkpoint else -1
    run.forget_after(step)
    log(
        f"resuming {run.path} from step {step}"
        if checkpoint
        else f"{run.path} has no checkpoint yet: starting from the beginning"
    )
    return checkpoint


def _newest_undamaged(run: RunFolder) -> Path | None:
    """The newest checkpoint whose files are what was written; damaged ones are named and removed."""
    damaged = 0
    for folder in reversed(complete_checkpoints(run.checkpoints)):
        name = damaged_file(folder)
        if name is None:
            return folder
        damaged += 1
        warn(f"{folder} is damaged ({name} is not what was written): it is removed, and an earlier one is taken")
        shutil.rmtree(folder, ignore_errors=True)
    if damaged:
        warn(f"every checkpoint of {run.path} was damaged: check the disk; the run starts from the beginning")
    return None


def is_over(checkpoint: Path, steps: int) -> bool:
    """Whether training had ended when ``checkpoint`` was written, so that only the ending is left to do."""
    return step_of(checkpoint) >= steps or bool(read_extra_state(checkpoint).get("stopped_early"))


def _is_free(key: str) -> bool:
    return any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE)


def _shown(value: object) -> str:
    return "null" if value is None else str(value)
