"""Faults that the method makes together with other settings: what it does not read, measure or allow.

In: a whole `Settings`. Out: for each fault the settings that take part and the sentence.
What a method does not read, measure or allow it says itself (`fitune.methods.method.Method`).
"""

from __future__ import annotations

from collections.abc import Iterator

from fitune.config.fields import all_fields
from fitune.config.sections import OWN_SECTIONS, Settings
from fitune.methods.method import Fault, Method, RuleInputs
from fitune.methods.registry import METHODS


def method_faults(settings: Settings) -> Iterator[Fault]:
    """Each fault as `fitune.config.rules.cross_faults` gives them."""
    method, inputs = METHODS[settings.method], inputs_of(settings)
    metric = settings.eval.best_metric
    if metric not in ("loss", *method.metrics):
        yield (
            ("eval.best_metric", "method"),
            f"is {metric}, which method {method.name} does not measure; use one of {', '.join(method.metrics)}",
        )
    if inputs.tuning not in method.learning_rates:
        yield ("train.tuning", "method"), f"is full, and method {method.name} {method.why_lora}; use lora"
    yield from _adapter_faults(method, inputs, settings.lora.dropout)
    if not method.reads_loss_on and inputs.loss_on != "auto":
        yield ("data.loss_on", "method"), f"is set, and method {method.name} always compares whole answers; remove it"
    yield from method.rules(settings.own, inputs)
    yield from _unread(settings, method)


def inputs_of(settings: Settings) -> RuleInputs:
    """The plain values that a method's own rules look at."""
    return RuleInputs(
        method=settings.method,
        tuning=settings.train.tuning,
        lora_bias=settings.lora.bias,
        lora_init=settings.lora.init,
        loss_on=settings.data.loss_on,
        batch_size=settings.train.batch_size,
        eval_samples=settings.eval.samples,
        held_out=settings.data.eval is not None or settings.data.eval_share > 0,
    )


def _adapter_faults(method: Method, inputs: RuleInputs, dropout: float) -> Iterator[Fault]:
    """What a reference or a policy does not bear."""
    for key, value, plain in inputs.moves_the_base if method.reference_by_switch else ():
        yield (
            (key, "method"),
            f"is {value}: with the adapter switched off, the model is then not the one that training began with, and "
            f"method {method.name} has no reference; use {plain}",
        )
    if method.forbids_dropout and dropout:
        yield (
            ("lora.dropout", "method"),
            f"is {dropout:g}, and with dropout the log-probabilities of method {method.name} would be random; use 0",
        )


def _unread(settings: Settings, method: Method) -> Iterator[Fault]:
    """What is set in the section of another method, or for another method of the same section."""
    for key, field in all_fields().items():
        others = field.section in OWN_SECTIONS and field.section != method.section
        if not others and key not in method.unread:
            continue
        if getattr(getattr(settings, field.section), field.name) != field.default:
            yield (key, "method"), f"is set, and method is {method.name}, which does not use it; remove it"
