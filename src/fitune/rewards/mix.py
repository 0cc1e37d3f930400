"""Several rewards with weights: `[pig_latin, 0.2*length:20, my_rewards.politeness]` → one score an answer.

A reward is named by a word of the library, with its argument behind a colon; by the dotted path of a function
(`package.module.function`); by a file and a function (`rewards.py:politeness`); or, as `run:RUN`, by a run of the
method `reward`. A weight stands before it: `0.5*chrf`, `-1*my.function`.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from fitune.errors import FituneError, RewardError, SettingsError, did_you_mean
from fitune.rewards.guard import call
from fitune.rewards.library import LIBRARY, Reward

WEIGHT = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*(.+)", re.DOTALL)
RUN = "run"


@dataclass(frozen=True)
class Sample:
    """An answer and what it answers. `row` holds the columns of its row in the data, `token_ids` the tokens of prompt and
    answer."""

    answer: str
    question: str = ""
    prompt: str = ""
    messages: tuple[Mapping[str, Any], ...] = ()
    wanted: str | None = None
    stopped: bool = True
    tokens: int = 0
    token_ids: tuple[int, ...] = ()
    row_number: int = 0
    row: dict[str, Any] = field(default_factory=dict)
    reasoning: str = ""


@dataclass(frozen=True)
class Part:
    """One reward of a mix. `takes` are the names of its arguments; None when it takes whatever there is."""

    name: str
    weight: float
    reward: Reward
    takes: frozenset[str] | None


@dataclass(frozen=True)
class Mix:
    """Rewards and weights; `seconds` is the limit of time for each call of one of them."""

    parts: tuple[Part, ...]
    seconds: float = 60.0

    def score(self, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
        """The weighted sum for each answer, and each reward's own numbers by its name.

        Raises:
            RewardError: as `fitune.rewards.guard.call`.
        """
        if not samples:
            return [], {part.name: [] for part in self.parts}
        offered = _offer(samples)
        own = {part.name: call(part.name, part.reward, _choose(part, offered), self.seconds) for part in self.parts}
        weights = {part.name: part.weight for part in self.parts}
        sums = [sum(weights[name] * values[i] for name, values in own.items()) for i in range(len(samples))]
        return sums, own

    def try_out(self, samples: Sequence[Sample]) -> None:
        """Score a few answers before any training, so that a reward's fault costs seconds.

        Raises:
            RewardError: as `score`.
        """
        try:
            self.score(samples)
        except RewardError as error:
            raise RewardError(f"tried before training: {error}") from error


def read_mix(specs: Sequence[str], seconds: float = 60.0, open_run: Callable[[str], Reward] | None = None) -> Mix:
    """The rewards that `specs` name.

    Args:
        open_run: makes a reward of the method `reward`'s run, from its name.

    Raises:
        SettingsError: every spec that names nothing, all at once.
    """
    parts: list[Part] = []
    faults: list[str] = [] if specs else ["rl.rewards is empty; name a reward, for example [pig_latin]"]
    for spec in specs:
        try:
            parts.append(_read(spec, open_run))
        except FituneError:
            raise
        except ValueError as error:
            faults.append(f'rl.rewards: "{spec}" {error}')
    twice = {part.name for part in parts if [other.name for other in parts].count(part.name) > 1}
    faults += [f'rl.rewards names "{name}" twice; give it one weight' for name in sorted(twice)]
    if faults:
        raise SettingsError(faults)
    return Mix(tuple(parts), seconds)


def check_names(specs: Sequence[str]) -> None:
    """What can be known to be wrong before a model is loaded, and without running anybody's code.

    Raises:
        SettingsError: every spec that names no reward, a built-in one wrongly, or a file that is not there.
    """
    faults: list[str] = []
    for spec in specs:
        head = _parsed(spec)[1].partition(":")[0]
        if head in LIBRARY or not ("." in head or head == RUN) or (head.endswith(".py") and not Path(head).is_file()):
            try:
                _read(spec, None)
            except ValueError as error:
                faults.append(f'rl.rewards: "{spec}" {error}')
    if faults:
        raise SettingsError(faults)


def _parsed(spec: str) -> tuple[float, str]:
    found = WEIGHT.fullmatch(spec.strip())
    return (float(found[1]), found[2].strip()) if found else (1.0, spec.strip())


def _read(spec: str, open_run: Callable[[str], Reward] | None) -> Part:
    weight, name = _parsed(spec)
    head, mark, argument = name.partition(":")
    if head in LIBRARY:
        reward = LIBRARY[head](argument)
    elif head == RUN and mark:
        if open_run is None:
            raise ValueError("is a learnt reward, which cannot be used here")
        reward = open_run(argument)
    elif head.endswith(".py"):
        reward = _from_file(Path(head), argument)
    elif "." in head and not mark:
        reward = _from_module(head)
    else:
        hint = did_you_mean(head, LIBRARY)
        raise ValueError(
            f"names no reward{hint}; use {', '.join(LIBRARY)}, run:RUN, package.module.function, or file.py:function"
        )
    return Part(name, weight, reward, _arguments(reward))


def _from_module(path: str) -> Reward:
    module_name, _, function_name = path.rpartition(".")
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # the command line's own path does not hold the folder that the user works in
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises when it is imported
        raise ValueError(f"cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    return _function(module, function_name, module_name)


def _from_file(path: Path, function_name: str) -> Reward:
    if not path.is_file():
        raise ValueError(f"names a file that does not exist: {path.resolve()}")
    spec = importlib.util.spec_from_file_location(f"fitune_rewards_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"names a file that Python cannot import: {path.resolve()}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises when it is run
        raise ValueError(f"cannot be imported: {type(error).__name__}: {error}") from error
    return _function(module, function_name, str(path))


def _function(module: ModuleType, name: str, where: str) -> Reward:
    reward = getattr(module, name, None)
    if not callable(reward):
        known = [word for word in vars(module) if callable(getattr(module, word)) and not word.startswith("_")]
        raise ValueError(f'names no function of {where}{did_you_mean(name, known)}; "{name}" is not one')
    return cast(Reward, reward)


def _arguments(reward: Reward) -> frozenset[str] | None:
    """Names that the reward takes; None when it takes all (`**columns`)."""
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):  # built-in functions may have no signature
        return None
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return frozenset(one.name for one in parameters)


def _offer(samples: Sequence[Sample]) -> dict[str, list[object]]:
    """Every list that a reward may ask for; our own names go before columns of the same name."""
    columns = dict.fromkeys(name for sample in samples for name in sample.row)
    offered: dict[str, list[object]] = {name: [sample.row.get(name) for sample in samples] for name in columns}
    own: dict[str, list[object]] = {
        "answers": [sample.answer for sample in samples],
        "reasonings": [sample.reasoning for sample in samples],
        "questions": [sample.question for sample in samples],
        "prompts": [sample.prompt for sample in samples],
        "messages": [[dict(message) for message in sample.messages] for sample in samples],
        "wanted": [sample.wanted for sample in samples],
        "stopped": [sample.stopped for sample in samples],
        "tokens": [sample.tokens for sample in samples],
        "token_ids": [sample.token_ids for sample in samples],
        "row_numbers": [sample.row_number for sample in samples],
    }
    return {
        **own,
        **{name: values for name, values in offered.items() if name not in own},
        "completions": own["answers"],
    }


def _choose(part: Part, offered: dict[str, list[object]]) -> dict[str, list[object]]:
    """The lists that this reward takes, the answers first."""
    if part.takes is None:
        return offered
    chosen = {name: offered[name] for name in offered if name in part.takes}
    if not {"answers", "completions"} & chosen.keys():
        raise RewardError(f"the reward {part.name} takes no argument named answers; it takes {sorted(part.takes)}")
    return {name: chosen[name] for name in sorted(chosen, key=lambda name: name not in ("answers", "completions"))}
