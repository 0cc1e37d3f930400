"""The life of an adapter on the built-in model: the same promises as on tiny ones."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fitune.adapters import in_memory
from fitune.adapters.base_snapshot import copy_layers, digests
from fitune.adapters.inject import attach, lora_config
from fitune.models.hardware import Precision, detect
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.quantization.quantize import NO_QUANTIZATION, QuantizationConfig
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer

# Type and quantization → least bits of a layer's largest weight that come back when the update is taken out by arithmetic.
BASES = {
    "fp32": (torch.float32, NO_QUANTIZATION, 20),
    "bf16": (torch.bfloat16, NO_QUANTIZATION, 6),
    "int8": (torch.bfloat16, QuantizationConfig("int8"), 4),
    "nf4": (torch.bfloat16, QuantizationConfig("nf4", double_quant=True), 0.5),
}


@pytest.fixture(autouse=True)
def built_in_cache(own_cache: str | None) -> Iterator[None]:
    """The user's own cache, where the built-in model is."""
    here = os.environ.pop("FITUNE_CACHE", None)
    if own_cache is not None:
        os.environ["FITUNE_CACHE"] = own_cache
    yield
    if here is not None:
        os.environ["FITUNE_CACHE"] = here


def open_base(kind: str) -> LoadedBase:
    source = resolve("smollm2-135m-instruct")
    tokenizer = load_tokenizer(source)
    dtype, quantization, _ = BASES[kind]
    rest = resolve_template(tokenizer), detect("cpu"), Precision(dtype, "test")
    return load_base(source, tokenizer, *rest, quantization=quantization)


@pytest.mark.slow
@pytest.mark.parametrize("kind", BASES)
def test_merge_unmerge_unload_on_the_built_in_model(kind: str):
    base = open_base(kind)
    tokenizer: Any = base.tokenizer
    ids = torch.tensor([tokenizer("Glue the sheet to the dark blue background.")["input_ids"]])

    def logits(model: Any) -> torch.Tensor:
        with torch.no_grad():
            return model.eval()(ids, use_cache=False).logits.float()

    bare, before = logits(base.model), digests(base.model)
    torch.manual_seed(0)
    model = attach(base.model, lora_config(base.model, rank=8, alpha=16))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.01)
    adapted = logits(model)
    assert (adapted - bare).abs().max() > 0.05
    reference = copy_layers(model)
    in_memory.merge(model, keep=False)
    by_arithmetic = in_memory.unmerge(model, reference)
    assert by_arithmetic.bits is not None and by_arithmetic.bits > BASES[kind][2]
    in_memory.put_back(reference)
    in_memory.merge(model)
    restored = in_memory.unmerge(model)
    assert restored.exact and digests(model) == before
    torch.testing.assert_close(logits(model), adapted, atol=0, rtol=0)
    again, different = in_memory.unload(model, before)
    assert different == []
    torch.testing.assert_close(logits(again), bare, atol=0, rtol=0)
