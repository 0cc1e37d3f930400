"""New tokens: PEFT's own layers, which copy the whole matrix, are the reference."""

from __future__ import annotations

import copy
import importlib
from collections import namedtuple

import pytest
import torch
from peft import get_peft_model

from fitune.adapters.inject import attach, cast_trained_to_fp32, lora_config
from fitune.data.packing.bins import pack_rows
from fitune.ops.label_loss import label_loss
from fitune.ops.packed_loss import pack_loss, split_model, to_pack
from fitune.ops.trained_tokens import TrainedTokens
from fitune.ops.tree_attention import use_tree_attention

Row = namedtuple("Row", ["input_ids", "trained", "row_number"])
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
BASES = {
    "tied": ("Llama", {"tie_word_embeddings": True}),
    "untied": ("Llama", {"tie_word_embeddings": False}),
    "scaled": ("Gemma3Text", {"tie_word_embeddings": True}),
    "capped": ("Gemma2", {"tie_word_embeddings": True, "final_logit_softcapping": 5.0}),
}
NEW = [61, 7]
ROWS = [Row((61, 5, 9, 7, number, 61, 12, 7), (False,) * 4 + (True,) * 4, number) for number in range(20, 25)]


def model_of(kind, ours, dtype=torch.float32, **changed):
    name, options = BASES[kind]
    library = importlib.import_module("transformers")
    name_of_model = "Gemma3ForCausalLM" if name == "Gemma3Text" else f"{name}ForCausalLM"
    torch.manual_seed(0)
    config = getattr(library, f"{name}Config")(**SIZES | options | changed)
    base = getattr(library, name_of_model)(config).to(dtype)
    adapted = lora_config(base, rank=4, init="debug", new_token_ids=NEW)
    torch.manual_seed(1)
    if ours:
        return attach(base, adapted).train()
    model = get_peft_model(base, adapted)
    cast_trained_to_fp32(model)
    return model.train()


def pair(kind, dtype=torch.float32, **changed):
    plain, ours = (model_of(kind, ours, dtype, **changed) for ours in (False, True))
    with torch.no_grad():
        for name, value in plain.named_parameters():
            if value.requires_grad and "trainable_tokens" in name:
                value.add_(torch.randn_like(value) * 0.3)
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}


def padded_loss(model):
    ids = torch.tensor([row.input_ids for row in ROWS])
    trained = torch.tensor([row.trained for row in ROWS])
    return label_loss(model, {"input_ids": ids, "labels": ids.masked_fill(~trained, -100)}, 20)


def packed_loss(model, smoothing=0.0, chunk_logits=None):
    use_tree_attention(model.get_base_model())
    (tree,) = pack_rows(ROWS, 10**6)
    return pack_loss(model, to_pack(tree, "cpu"), 20, smoothing, chunk_logits)


LOSSES = {
    "padded": padded_loss,
    "packed": packed_loss,
    "small chunks": lambda model: packed_loss(model, 0.1, 192),
}


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
def test_loss_and_gradients_equal_pefts(kind, loss_of):
    plain, ours = pair(kind)
    layers = sum(isinstance(module, TrainedTokens) for module in ours.modules())
    assert layers == 2 and split_model(ours)[1].frozen_linear and not split_model(plain)[1].frozen_linear
    wanted, found = loss_of(plain), loss_of(ours)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    expected, grads = gradients(plain, wanted), gradients(ours, found)
    assert expected.keys() == grads.keys() and any("trainable_tokens" in name for name in grads)
    for name, grad in expected.items():
        assert (grads[name] - grad).norm() <= 2e-5 * grad.norm(), name


def test_in_bf16_gradients_are_near_to_fp32_as_pefts_are():
    """Squared distances, of the fused layers too: at most twice as far (1.4 times was seen)."""
    exact = gradients(model := pair("scaled")[0], packed_loss(model))
    plain, ours = pair("scaled", torch.bfloat16)
    found = []
    for model in (plain, ours):
        with torch.autocast("cpu", torch.bfloat16):
            loss = packed_loss(model)
        grads = gradients(model, loss)
        found.append(sum(((grads[name] - grad).norm() / grad.norm()) ** 2 for name, grad in exact.items()))
    assert found[1] <= 4 * found[0]


@pytest.mark.parametrize("kind", BASES)
def test_answers_merge_and_names_are_pefts(kind):
    plain, ours = pair(kind)
    ids = torch.tensor([[3, 61, 7, 9]])
    assert plain.state_dict().keys() == ours.state_dict().keys()
    with torch.no_grad():
        plain.eval(), ours.eval()
        torch.testing.assert_close(ours(ids).logits, plain(ids).logits, rtol=0, atol=2e-5)
        with plain.disable_adapter(), ours.disable_adapter():
            assert torch.equal(ours(ids).logits, plain(ids).logits)
        merged = [copy.deepcopy(model).merge_and_unload() for model in (plain, ours)]
    for (name, value), (other, expected) in zip(
        merged[1].state_dict().items(), merged[0].state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(value, expected), name


def test_nothing_of_the_vocabularys_size_is_made_but_a_chunk_of_logits():
    """Largest tensors of a step, by the memory plan's recorder on a real CPU run: PEFT's way makes V×H four times."""
    from fitune.planning.trace.recorder import Recorder

    sizes = []
    for model in pair("tied", vocab_size=4096):
        recorder = Recorder(device="cpu")
        recorder.begin("step 1")
        recorder.mark(model.parameters(), "weights")  # views of them are seen too
        with recorder:
            gradients(model, packed_loss(model, chunk_logits=4096))
        made = zip(recorder.sizes, recorder.categories, strict=True)
        sizes.append([size for size, category in made if size >= 4096 * 32 * 4 and category != "weights"])
    assert len(sizes[0]) >= 4 and sizes[1] == []
