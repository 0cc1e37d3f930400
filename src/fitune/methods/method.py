"""`Method`: everything that is known of a method of training before torch is imported.

In: nothing. Out: the class whose one instance a method stands in ``methods/<name>/config.py``, beside its settings section.
Settings, their rules and help, the data's way, the memory plan and the documents read these facts; the trainer is imported
by `Method.runtime` when a run needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from fitune.answer_metrics import ANSWER_METRICS
from fitune.section import Section

if TYPE_CHECKING:
    from fitune.methods.runtime import Runtime
    from fitune.trainers.base import FituneTrainer

# (settings that take part, the sentence that follows the first one's place), as in `fitune.config.rules`.
Fault = tuple[tuple[str, ...], str]


@dataclass(frozen=True, kw_only=True)
class RuleInputs:
    """The settings outside its own section that a method's rules look at."""

    method: str
    tuning: str
    lora_bias: str
    lora_init: str
    loss_on: str
    batch_size: int
    eval_samples: int
    held_out: bool
    """Whether there are held-out rows."""

    @property
    def moves_the_base(self) -> Iterator[tuple[str, str, str]]:
        """(setting, its value, a value that does not) of what leaves the base changed when the adapter is switched off."""
        for key, value, plain in (("lora.bias", self.lora_bias, "none"), ("lora.init", self.lora_init, "default")):
            if value in ("all", "lora_only", "pissa", "loftq", "debug"):
                yield key, value, plain


def no_rules(section: object, inputs: RuleInputs) -> Iterator[Fault]:
    """The rules of a method that has none."""
    return iter(())


@dataclass(frozen=True, kw_only=True)
class OnlineDefaults:
    """Settings of `fitune.methods.rl_config.RlSettings` whose null is the method's own value: these values."""

    num_generations: int
    num_iterations: int
    kl_coef: float


@dataclass(frozen=True, kw_only=True)
class Method:
    """The facts of one method."""

    name: str
    """The word of ``method:``."""
    help: str
    """What it is, in a line."""
    trainer: str
    """The module that holds its `Runtime` as ``RUNTIME``."""
    reads: Literal["rows", "text", "pairs", "judged", "prompts"]
    """What a training row is: conversations or plain text, plain text alone, two answers to a prompt, one answer and whether
    it is wanted, or a prompt."""
    learning_rates: Mapping[str, float]
    """``train.tuning`` → the learning rate when none is set. Without "full" the method needs LoRA."""
    traced_loss: Literal["labels", "rewards", "pairs"] | None
    """The loss path that the memory plan traces (`fitune.planning.scenario`); None is a method that cannot be planned."""

    metrics: tuple[str, ...] = ("loss", *ANSWER_METRICS)
    """What an evaluation measures, out of which ``eval.best_metric`` may choose. The first is taken in place of a loss
    where there is none."""
    answer_metrics: tuple[str, ...] = tuple(ANSWER_METRICS)
    """Those that compare generated answers with the wanted ones."""

    section: str | None = None
    """The name of its settings section; methods may share one."""
    settings: type[Section] | None = None
    """The class of that section."""
    unread: tuple[str, ...] = ()
    """Settings of the section that this method does not read."""
    sampling: OnlineDefaults | None = None
    """For a method that learns from its own answers: what null means in its section."""
    rules: Callable[[Any, RuleInputs], Iterator[Fault]] = no_rules
    """Its section's faults, with other settings or within itself."""

    why_lora: str = ""
    """Why the method needs LoRA, as the end of the sentence "method NAME …"."""
    reference_by_switch: bool = False
    """The reference is the base with the adapter switched off, so nothing else may have changed the base."""
    forbids_dropout: bool = False
    reads_loss_on: bool = True
    """Whether ``data.loss_on`` says which tokens are trained."""
    makes_judge: bool = False
    """The result scores answers and gives none: a chain's later stages do not go on with it, they are judged by it."""

    def runtime(self) -> Runtime[FituneTrainer]:
        """The method's functions; its trainer is imported here and not before."""
        return import_module(self.trainer).RUNTIME

    @property
    def row_sides(self) -> int:
        """Sequences in a row of the data: 2 for a pair."""
        return 2 if self.reads == "pairs" else 1
