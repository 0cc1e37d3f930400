"""The loss: against transformers' own on full logits, and without the mask path."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    OPTConfig,
    OPTForCausalLM,
)

from fitune.ops import label_loss as losses

SIZES = {"vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES, intermediate_size=64)),
    "opt": lambda: OPTForCausalLM(
        OPTConfig(**SIZES, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64, dropout=0.0)
    ),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


def batch_of(lengths, seed=0, prompt=2):
    """Right-padded rows whose first ``prompt`` tokens are not trained."""
    torch.manual_seed(seed)
    ids_BS = torch.randint(3, 96, (len(lengths), max(lengths)))
    mask_BS = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    ids_BS[~mask_BS] = 0
    labels_BS = ids_BS.masked_fill(~mask_BS, -100)
    labels_BS[:, :prompt] = -100
    return {"input_ids": ids_BS, "attention_mask": mask_BS.long(), "labels": labels_BS}


def reference(model, batch):
    """transformers' own mean over trained tokens, from full logits."""
    return model(**batch).loss


def gradients(model, value):
    model.zero_grad()
    value.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def test_equals_transformers_own_loss_and_gradients(model):
    batch = batch_of([9, 5, 7])
    ours = losses.label_loss(model, batch, losses.count_trained(batch["labels"]))
    assert torch.allclose(ours, reference(model, batch), atol=1e-6, rtol=0)
    expected = gradients(model, reference(model, batch))
    for name, gradient in gradients(model, ours).items():
        assert torch.allclose(gradient, expected[name], atol=1e-6, rtol=1e-5), name


def test_a_model_without_the_mask_gives_the_same(model, monkeypatch):
    batch = batch_of([9, 5, 7])
    assert losses.takes_position_mask(model)
    masked = losses.label_loss(model, batch, 3)
    monkeypatch.setattr(losses, "takes_position_mask", lambda _: False)
    assert torch.allclose(losses.label_loss(model, batch, 3), masked, atol=0, rtol=1e-6)


def test_logits_exist_only_where_there_is_a_label(model):
    batch = batch_of([9, 5, 7], prompt=4)
    shapes = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, args, output: shapes.append(tuple(output.shape)))
    losses.label_loss(model, batch, 1)
    assert shapes == [(5 + 1 + 3, 96)]


def test_positions_instead_of_a_mask_give_the_same(model):
    batch = batch_of([9, 5, 7])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    positions_BK = torch.arange(8).expand(3, 8)
    by_position = losses.selected_loss(model, inputs, positions_BK, batch["labels"][:, 1:].reshape(-1), 3)
    assert torch.allclose(by_position, losses.label_loss(model, batch, 3), atol=0, rtol=1e-6)


def test_positions_trace_without_data():
    """Fake tensors on the meta device: what the memory plan runs; a mask would ask how many ones it has."""
    with FakeTensorMode(), torch.device("meta"):
        model = MODELS["llama"]()
        ids_BS = torch.zeros(2, 8, dtype=torch.long)
        inputs = {"input_ids": ids_BS, "attention_mask": torch.ones_like(ids_BS)}
        positions_BK = torch.zeros(2, 3, dtype=torch.long)
        targets_N = torch.zeros(6, dtype=torch.long)
        value = losses.selected_loss(model, inputs, positions_BK, targets_N, 6)
        value.backward()
        assert value.shape == () and model.lm_head.weight.grad.shape == (96, 32)


def test_the_first_token_of_a_row_is_nobodys_target():
    labels_BS = torch.tensor([[7, 8, -100], [-100, -100, 9]])
    keep_BS, targets_N = losses.kept_positions(labels_BS)
    assert keep_BS.tolist() == [[True, False, False], [False, True, False]]
    assert targets_N.tolist() == [8, 9]
    assert losses.count_trained(labels_BS) == 2


def test_padding_that_shares_the_end_tokens_id_does_not_hide_it(model):
    """The mask goes by position: the end token is trained although padding has the same id (trl #734, #456)."""
    end = 0  # also the padding's id in batch_of
    batch = batch_of([9, 5])
    batch["input_ids"][1, 4] = end
    batch["labels"][1, 4] = end
    _, targets_N = losses.kept_positions(batch["labels"])
    assert targets_N.tolist().count(end) == 1
    value = losses.label_loss(model, batch, 1)
    batch["labels"][1, 4] = -100
    assert not torch.isclose(value, losses.label_loss(model, batch, 1))


def test_the_sum_is_fp32_in_a_bf16_model():
    torch.manual_seed(0)
    model = MODELS["llama"]().to(torch.bfloat16)
    assert losses.label_loss(model, batch_of([9, 5, 7]), 3).dtype == torch.float32


def test_a_batch_with_nothing_to_train_gives_zero_and_no_error(model):
    batch = batch_of([4, 4], prompt=4)
    value = losses.label_loss(model, batch, 1)
    value.backward()
    assert value.item() == 0.0


def test_a_balance_loss_that_is_left_out_is_said_and_why():
    """T10: the model's own forward would add it."""
    asked = MixtralConfig(output_router_logits=True, router_aux_loss_coef=10.0)
    said = losses.balance_loss_left_out(asked)
    assert said is not None and "router_aux_loss_coef 10), which is not added: it is taken over all tokens" in said
    assert losses.balance_loss_left_out(MixtralConfig(output_router_logits=False)) is None
    assert losses.balance_loss_left_out(MixtralConfig(output_router_logits=True, router_aux_loss_coef=0.0)) is None
    assert losses.balance_loss_left_out(LlamaConfig()) is None


def chunked(model, batch, num_items=1):
    return losses.label_loss(model, batch, num_items, losses.Chunking(nullcontext, logits=300))


def test_many_logits_are_made_chunk_by_chunk_and_the_loss_stays(model, monkeypatch):
    batch = batch_of([9, 5, 7])
    whole = losses.label_loss(model, batch, 3)
    slopes = gradients(model, whole)
    monkeypatch.setattr(losses, "MOST_WHOLE_LOGITS", 10)
    monkeypatch.setattr(losses, "selected_loss", None)
    parts = chunked(model, batch, 3)
    assert parts.item() == pytest.approx(whole.item(), rel=1e-6)
    for name, slope in gradients(model, parts).items():
        assert torch.allclose(slope, slopes[name], rtol=1e-4, atol=1e-6), name


def test_a_frozen_head_needs_no_logits_in_the_backward_pass(model, monkeypatch):
    model.get_output_embeddings().requires_grad_(False)
    batch = batch_of([9, 5, 7])
    slopes = gradients(model, losses.label_loss(model, batch, 3))
    monkeypatch.setattr(losses, "MOST_WHOLE_LOGITS", 10)
    for name, slope in gradients(model, chunked(model, batch, 3)).items():
        assert torch.allclose(slope, slopes[name], rtol=1e-4, atol=1e-6), name


def test_a_model_that_does_more_than_its_head_keeps_its_own_logits(monkeypatch):
    torch.manual_seed(0)
    model = MODELS["llama"]()
    forward = type(model).forward

    def doubled(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        out.logits = out.logits * 2
        return out

    monkeypatch.setattr(type(model), "forward", doubled)
    batch = batch_of([9, 5])
    whole = losses.label_loss(model, batch, 1)
    monkeypatch.setattr(losses, "MOST_WHOLE_LOGITS", 10)
    assert chunked(model, batch).item() == whole.item()
