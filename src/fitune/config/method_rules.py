"""Faults that the method makes together with other settings: what it does not read, measure or allow.

In: a whole `Settings`. Out: for each fault the settings that take part and the sentence.
"""

from __future__ import annotations

from collections.abc import Iterator

from fitune.config.fields import all_fields
from fitune.config.sections import Settings

Fault = tuple[tuple[str, ...], str]
# Method → what its evaluation measures, out of which eval.best_metric may choose (the same as in its file in train/).
ANSWERED = ("exact_match", "word_accuracy", "chrf")
METRICS = {
    "sft": ("loss", *ANSWERED),
    "lm": ("loss", *ANSWERED),
    "reward": ("loss", "accuracy"),
    "dpo": ("loss", "accuracy", *ANSWERED),
    "ppo": ("loss", "reward", *ANSWERED),
    "grpo": ("loss", "reward", *ANSWERED),
}
# Section → the methods that read it.
OWN_SECTIONS = {"reward": ("reward",), "dpo": ("dpo",), "rl": ("ppo", "grpo")}
WITHOUT_LOSS_ON = ("reward", "dpo", "ppo", "grpo")
# Settings of the section rl that one of its methods alone reads.
UNREAD = {
    "grpo": ("rl.kl_target", "rl.gamma", "rl.lam", "rl.value_coef", "rl.value_clip"),
    "ppo": ("rl.advantage", "rl.scale_rewards"),
}


def method_faults(settings: Settings) -> Iterator[Fault]:
    """Each fault as `fitune.config.rules.cross_faults` gives them."""
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
    if method in OWN_SECTIONS["rl"]:
        yield from _rl(settings)
    for key, field in all_fields().items():
        if method in OWN_SECTIONS.get(field.section, (method,)) and key not in UNREAD.get(method, ()):
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


def _rl(settings: Settings) -> Iterator[Fault]:
    rl, train, method = settings.rl, settings.train, settings.method
    if not rl.rewards:
        yield (
            ("rl.rewards", "method"),
            f"is empty, and method {method} learns from rewards; name one, such as [pig_latin]",
        )
    if train.tuning == "full":
        yield (
            ("train.tuning", "method"),
            f"is full, and method {method} finds its reference by switching the adapter off; use lora",
        )
    for key, ours, word in (("lora.bias", settings.lora.bias, "none"), ("lora.init", settings.lora.init, "default")):
        if ours in ("all", "lora_only", "pissa", "loftq", "debug"):
            yield (
                (key, "method"),
                f"is {ours}: the adapter switched off is then not the model that training began with, and method {method} "
                f"has no reference; use {word}",
            )
    if settings.lora.dropout:
        yield (
            ("lora.dropout", "method"),
            f"is {settings.lora.dropout:g}, and under method {method} the policy would differ from itself by chance; use 0",
        )
    if not settings.eval.samples and (settings.data.test is not None or settings.data.test_share):
        yield (
            ("eval.samples", "method"),
            f"is 0, and method {method} measures nothing on held-out rows but answers; use 1 or more, or "
            "data.test_share 0 without data.test",
        )
    if method == "grpo" and rl.answers == 1:
        yield (
            ("rl.answers", "method"),
            "is 1, and method grpo compares the answers to a prompt; use 2 or more, such as 8",
        )
    if rl.minibatches > train.batch_size:
        yield (
            ("rl.minibatches", "train.batch_size"),
            f"is {rl.minibatches}, and a step has train.batch_size {train.batch_size} prompts; use that or fewer",
        )
