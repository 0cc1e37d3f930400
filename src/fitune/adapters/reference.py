"""The reference of reinforcement on the one base in memory: the bare base, or a frozen adapter beside the trained one.

In: a `PeftModel`. Out: a context in which it answers as the reference.
Knows nothing of losses. A run that goes on from an earlier adapter must not drift from that adapter, not from the base
below it, so the adapter lies on the base a second time, frozen, under the name `REFERENCE`.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch
from peft import PeftModel

from fitune.errors import ModelError

REFERENCE = "fitune_reference"


@contextmanager
def as_reference(model: PeftModel) -> Generator[None, None, None]:
    """Within it the model answers as the reference, without gradients; afterwards all is as it was.

    Raises:
        ModelError: what an adapter switched off does not give back: PiSSA's base, biases trained in place.
    """
    if REFERENCE in model.peft_config:
        with torch.no_grad(), switched(model, REFERENCE):
            yield
        return
    for config in model.peft_config.values():
        if (bias := getattr(config, "bias", "none")) != "none":
            raise ModelError(
                f"lora.bias is {bias}: trained biases change the base even with the adapter off, so it is no "
                "reference; use lora.bias none"
            )
        if getattr(config, "init_lora_weights", True) == "pissa":
            raise ModelError(
                "lora.init is pissa, which moves weights out of the base, so it is no reference; use default"
            )
    with torch.no_grad(), model.disable_adapter():
        yield


@contextmanager
def switched(model: PeftModel, name: str) -> Generator[None, None, None]:
    """Another adapter active; which parameters are trained does not change."""
    before, trained = cast(str, model.active_adapter), [(value, value.requires_grad) for value in model.parameters()]
    model.set_adapter(name, inference_mode=True)
    try:
        yield
    finally:
        model.set_adapter(before)
        for value, wanted in trained:
            value.requires_grad_(wanted)
