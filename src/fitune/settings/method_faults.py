"""Faults that the method makes together with other settings: what it does not read, measure or allow.

In: a whole `Settings`. Out: for each fault the settings that take part and the sentence.
"""

from __future__ import annotations

from collections.abc import Iterator

from fitune.config import Settings
from fitune.settings.fields import all_fields

Fault = tuple[tuple[str, ...], str]
# Method → what its evaluation measures, out of which eval.best_metric may choose (the same as in its file in train/).
ANSWERED = ("exact_match", "word_accuracy", "chrf")
METRICS = {
    "sft": ("loss", *ANSWERED),
    "lm": ("loss", *ANSWERED),
    "reward": ("loss", "accuracy"),
    "dpo": ("loss", "accuracy", *ANSWERED),
}
# Sections that belong to one method.
OWN_SECTIONS = ("reward", "dpo")
WITHOUT_LOSS_ON = ("reward", "dpo")


def method_faults(settings: Settings) -> Iterator[Fault]:
    """Each fault as `fitune.settings.cross.cross_faults` gives them."""
    method, metric = settings.method, settings.eval.best_metric
    if metric not in METRICS[method]:
        yield (
            ("eval.best_metric", "method"),
            f"is {metric}, which method {method} does not measure; use one of {', '.join(METRICS[method])}",
        )
    if method == "reward" and settings.train.tuning == "full":
        yield (
            ("train.tuning", "method"),
            "is full, and method reward trains an adapter and a head over a frozen base; use lora",
        )
    if method == "dpo":
        yield from _dpo(settings)
    if method in WITHOUT_LOSS_ON and settings.data.loss_on != "auto":
        yield ("data.loss_on", "method"), f"is set, and method {method} looks at whole answers; remove it"
    for key, field in all_fields().items():
        if field.section not in OWN_SECTIONS or field.section == method:
            continue
        if getattr(getattr(settings, field.section), field.name) != field.default:
            yield (key, "method"), f"is set, and method is {method}, which does not read it; remove it"


def _dpo(settings: Settings) -> Iterator[Fault]:
    dpo, lora = settings.dpo, settings.lora
    if dpo.label_smoothing and dpo.loss == "ipo":
        yield ("dpo.label_smoothing", "dpo.loss"), "is set, and dpo.loss ipo does not read it; remove it"
    if dpo.loss == "robust" and not dpo.label_smoothing:
        yield (
            ("dpo.loss", "dpo.label_smoothing"),
            "is robust, which corrects for wrong labels, and dpo.label_smoothing is 0; set it, for example 0.1, or use "
            "sigmoid",
        )
    if dpo.reference == "live" and settings.train.tuning == "full":
        yield (
            ("dpo.reference", "train.tuning"),
            "is live, and train.tuning is full, which has no adapter to switch off; use precomputed",
        )
    for key, ours, word in (("lora.bias", lora.bias, "none"), ("lora.init", lora.init, "default")):
        if dpo.reference == "live" and ours in ("all", "lora_only", "pissa", "loftq", "debug"):
            yield (
                ("dpo.reference", key),
                f"is live, and {key} is {ours}: the adapter switched off is not the model that training began with; use "
                f"precomputed, or {key} {word}",
            )
