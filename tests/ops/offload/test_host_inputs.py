"""Inputs of checkpointed layers on the host: checkpointing alone is the reference, equal to the bit."""

from __future__ import annotations

import gc

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fitune.adapters.inject import attach, lora_config
from fitune.ops.offload.host_inputs import HostInputs, keep_inputs_on_host

SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
IDS = torch.arange(21).view(3, 7)
INPUT_BYTES = IDS.numel() * 32 * 4


def checkpointed(lora=True):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES))
    if lora:
        model = attach(model, lora_config(model, rank=4, init="debug"))
    model.train().activation_checkpointing_enable({"use_reentrant": False})
    return model


def gradients(model):
    model.zero_grad()
    loss = model(input_ids=IDS, labels=IDS).loss
    loss.backward()
    return loss.item(), {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


@pytest.mark.parametrize("lora", [True, False])
def test_loss_and_gradients_are_equal_to_the_bit(lora):
    plain, offloaded = checkpointed(lora), checkpointed(lora)
    inputs = HostInputs(smallest_bytes=INPUT_BYTES)
    assert keep_inputs_on_host(offloaded, inputs) == 3
    wanted = gradients(plain)
    for _ in range(2):
        loss, grads = gradients(offloaded)
        assert loss == wanted[0] and grads.keys() == wanted[1].keys()
        assert all(torch.equal(grads[name], value) for name, value in wanted[1].items())
        gc.collect()
        assert inputs.peak_bytes == 3 * INPUT_BYTES and inputs.host_bytes == 0


def test_a_pass_that_is_given_up_leaves_nothing_on_the_host():
    model, inputs = checkpointed(), HostInputs(smallest_bytes=0)
    keep_inputs_on_host(model, inputs)
    wanted = gradients(checkpointed())
    loss = model(input_ids=IDS, labels=IDS).loss
    assert inputs.host_bytes == 3 * INPUT_BYTES
    del loss
    gc.collect()
    assert inputs.host_bytes == 0
    assert gradients(model)[0] == wanted[0]


def test_small_tensors_stay():
    inputs = HostInputs(smallest_bytes=INPUT_BYTES + 1)
    model = checkpointed()
    keep_inputs_on_host(model, inputs)
    gradients(model)
    assert inputs.peak_bytes == 0
