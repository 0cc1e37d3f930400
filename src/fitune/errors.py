"""Every error that fitune raises on purpose.

FituneError                      anything below; the command line prints it without a traceback, exit status 1
├── SettingsError (ValueError)   settings: unknown keys, wrong types, impossible values, all of them at once
├── DataError (ValueError)       a data set that cannot be read, recognised, rendered or trained on
├── ModelError (ValueError)      a model, tokenizer or template that cannot be found, read or used
├── RunError (RuntimeError)      a run folder, checkpoint or resume that cannot go on
│   ├── TrainingHalted           training stopped itself: the loss was NaN or infinite
│   ├── ToldByFirst              what rank 0 of a run on several processes tells, on the others
│   ├── RewardError              a reward raised, took too long, or returned what is no reward
│   └── StorageError             a disk that is full, read-only or broken
├── PlanError (RuntimeError)     a memory plan that cannot be made
│   ├── NotTraced                the model's code does not run on torch's meta device
│   └── DoesNotFit               nothing that the user left free fits the memory
└── MissingExtra (ImportError)   an optional package is needed and absent

A message says what happened, the value, and the fix: ``lora.rank is 0; use 1 or more, for example 16``.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class FituneError(Exception):
    """Base of every error that fitune raises on purpose."""


class SettingsError(FituneError, ValueError):
    """One or more faults in the settings; ``faults`` holds each as one line."""

    def __init__(self, faults: Iterable[str]):
        self.faults = tuple(faults)
        head = "1 fault in the settings" if len(self.faults) == 1 else f"{len(self.faults)} faults in the settings"
        super().__init__("\n".join([f"{head}:", *(f"  - {fault}" for fault in self.faults)]))


class DataError(FituneError, ValueError):
    """A data set that cannot be read, recognised, rendered or trained on."""


class ModelError(FituneError, ValueError):
    """A model, tokenizer or chat template that cannot be found, read or used."""


class RunError(FituneError, RuntimeError):
    """A run folder, checkpoint or resume that cannot go on."""


class TrainingHalted(RunError):
    """Training stopped itself: the loss was NaN or infinite."""


class ToldByFirst(RunError):
    """An error that every process of a run raises; rank 0 tells it, this one is another."""


class RewardError(RunError):
    """A reward raised, took too long, or returned what is not one finite number an answer."""


class StorageError(RunError):
    """A file could not be written: the disk is full, read-only or broken; what was whole before still is."""


class PlanError(FituneError, RuntimeError):
    """A memory plan that cannot be made."""


class NotTraced(PlanError):
    """The model's code does not run on torch's meta device; the message names the call."""


class DoesNotFit(PlanError):
    """Nothing that the user left free fits the memory."""


class MissingExtra(FituneError, ImportError):
    """An optional package is needed and absent; the message names the command that installs it."""


NO_MEMORY = (
    "the operating system gave no more memory; close other programs, or raise the limit (`ulimit -v`, the cgroup's)"
)


def no_memory_left(error: BaseException) -> bool:
    """Whether an error says, in whatever library's words, that the system gave no more memory of the CPU."""
    said = str(error)
    return isinstance(error, MemoryError) or "os error 12" in said or "failed to map segment" in said


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` (did you mean "x"?)`` for the nearest of ``known``, or an empty string."""
    known = list(known)
    lowered = {name.lower(): name for name in known}
    near = get_close_matches(word.lower(), lowered, n=1, cutoff=0.6)
    return f' (did you mean "{lowered[near[0]]}"?)' if near else ""
