"""Packs in the trainer: the padded path, itself checked against TRL, is the reference."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    BloomForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    LlamaConfig,
    Olmo3Config,
    Qwen3Config,
    Qwen3NextConfig,
)
from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig

from fitune.data.packing.bins import pack_rows
from fitune.ops.label_loss import label_loss
from fitune.ops.tree_attention import use_tree_attention
from fitune.trainers.packed import PACKS, PackedTrainer
from fitune.trainers.packing_support import (
    Packing,
    _others_changed,
    _packed_loss,
    _sample,
    choose_packing,
    self_check,
)


def prefixed(tiny, count):
    """Rows of which half begin alike."""
    rows = tiny.make_rows(count)
    made = []
    for row in rows:
        ids = (5, 6, 7, 8, 9, *row.input_ids) if row.row_number % 2 else row.input_ids
        trained = (False,) * (len(ids) - len(row.input_ids)) + row.trained
        made.append(type(row)(ids, trained, row.row_number))
    return made


def packed_trainer(tiny, folder, model, rows, mode="tree", max_tokens=1000, eval_rows=(), **changed):
    """The padded trainer's twin."""
    twin = tiny.trainer(folder, model, rows, eval_rows, **changed)
    logged, callbacks = twin.logged, twin.callback_handler.callbacks
    ours = [callback for callback in callbacks if type(callback).__module__.startswith("fitune.trainers.callbacks")]
    trainer = PackedTrainer(
        model,
        twin.args,
        rows,
        list(eval_rows),
        tiny.collate,
        keep_checkpoints=2,
        callbacks=ours,
        packing=Packing(mode, max_tokens),
    )
    trainer.logged = logged
    return trainer


@pytest.mark.parametrize(("mode", "max_tokens"), [("tree", 1000), ("tree", 25), ("rows", 30)])
def test_losses_and_norms_equal_the_padded_trainers(tiny, tmp_path, mode, max_tokens):
    rows = prefixed(tiny, 13)
    plain = tiny.trainer(tmp_path / "a", tiny.llama(), rows, rows[:3], micro_batch_size=2, epochs=2, every_steps=3)
    plain.train()
    model = tiny.llama()
    assert self_check(model, rows, share=mode == "tree") is None
    ours = packed_trainer(
        tiny, tmp_path / "b", model, rows, mode, max_tokens, rows[:3], micro_batch_size=2, epochs=2, every_steps=3
    )
    ours.train()
    assert len(ours.logged) == len(plain.logged) > 8
    for expected, got in zip(plain.logged, ours.logged, strict=True):
        assert (expected["kind"], expected["step"]) == (got["kind"], got["step"])
        assert got["loss"] == pytest.approx(expected["loss"], rel=2e-5)
        if expected["kind"] == "train":
            assert got["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)


def test_every_row_is_seen_once_an_epoch_in_the_padded_paths_order(tiny, tmp_path):
    rows = prefixed(tiny, 13)
    model = tiny.llama()
    assert self_check(model, rows, share=True) is None
    trainer = packed_trainer(tiny, tmp_path, model, rows, max_tokens=30)
    for epoch in range(2):
        trainer.order.set_epoch(epoch)
        steps = [[n for tree in batch[PACKS] for n in tree.row_numbers] for batch in trainer.get_train_dataloader()]
        order = list(trainer.order)
        assert [sorted(step) for step in steps] == [sorted(order[i : i + 4]) for i in range(0, 13, 4)]
        assert Counter(n for step in steps for n in step) == Counter(range(13))


def test_packs_stay_within_their_limit(tiny):
    rows = prefixed(tiny, 40)
    packs = pack_rows(rows, 40)
    assert max(tree.num_nodes for tree in packs) <= 40
    assert Counter(n for tree in packs for n in tree.row_numbers) == Counter(range(40))
    assert sum(tree.num_nodes for tree in packs) < sum(len(row.input_ids) for row in rows)


def test_plain_llama_gets_the_tree(tiny):
    model = tiny.llama()
    packing = choose_packing(model, prefixed(tiny, 9), "auto", micro_batch_rows=4)
    assert packing.mode == "tree" and packing.notes == ()
    assert choose_packing(model, prefixed(tiny, 9), "rows", 4).mode == "rows"
    assert choose_packing(model, prefixed(tiny, 9), "off", 4).mode == "off"


def test_dropout_keeps_rows_apart_unless_asked(tiny):
    rows = prefixed(tiny, 9)
    packing = choose_packing(tiny.llama(dropout=0.1), rows, "auto", 4)
    assert packing.mode == "rows" and "dropout" in packing.notes[0]
    assert choose_packing(tiny.llama(dropout=0.1), rows, "tree", 4).mode == "tree"


def test_attention_dropout_is_refused(tiny):
    config = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
    packing = choose_packing(GPT2LMHeadModel(config), prefixed(tiny, 9), "auto", 4)
    assert packing.mode == "off" and "attn_pdrop is 0.1" in packing.notes[0]


def test_attention_in_chunks_of_a_row_is_padded(tiny):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4
    )
    model = AutoModelForCausalLM.from_config(config)
    model.config.layer_types = ["chunked_attention", "full_attention"]
    packing = choose_packing(model, prefixed(tiny, 9), "auto", 4)
    assert packing.mode == "off" and "chunked attention" in packing.notes[0]


def test_alibi_is_found_out_and_the_model_left_as_it_was(tiny):
    torch.manual_seed(0)
    model = BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4, attention_dropout=0.0,
                                         hidden_dropout=0.0))  # fmt: skip
    before = model.config._attn_implementation
    packing = choose_packing(model, prefixed(tiny, 9), "auto", 4)
    assert packing.mode == "off" and packing.notes[-1] == "rows are padded"
    assert model.config._attn_implementation == before


def test_a_wrong_mask_is_found_out(tiny, monkeypatch):
    """The check must be able to fail: here every node sees everything before it in the pack."""
    from fitune.ops import tree_attention_layout

    torch.manual_seed(0)
    model = tiny.llama(lora=False)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    monkeypatch.setattr(
        tree_attention_layout.Group,
        "visible",
        lambda self, window: torch.ones(1, self.num_queries, self.num_keys, dtype=torch.bool),
    )
    assert "instead of" in str(self_check(model, prefixed(tiny, 9), share=True))


def test_generation_and_padded_batches_still_work_afterwards(tiny):
    torch.manual_seed(0)
    model = tiny.llama().eval()
    batch = tiny.collate(tiny.make_rows(3))
    with torch.no_grad():
        before = model(**batch).loss
        assert choose_packing(model, prefixed(tiny, 9), "auto", 4).mode == "tree"
        assert torch.equal(model(**batch).loss, before)


def test_gradient_checkpointing_changes_nothing(tiny, tmp_path):
    rows = prefixed(tiny, 8)
    results = []
    for checkpointing in (False, True):
        model = tiny.llama()
        assert self_check(model, rows, share=True) is None
        trainer = packed_trainer(tiny, tmp_path / str(checkpointing), model, rows, gradient_checkpointing=checkpointing)
        trainer.train()
        results.append(tiny.losses(trainer))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def qwen3_5() -> Any:
    return Qwen3_5TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, pad_token_id=0,
    )  # fmt: skip


def qwen3_next() -> Any:
    return Qwen3NextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8,
        linear_value_head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
        shared_expert_intermediate_size=16, pad_token_id=0,
    )  # fmt: skip


def lfm2() -> Any:
    return Lfm2Config(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention"], pad_token_id=0,
    )  # fmt: skip


HYBRIDS = pytest.mark.parametrize("config", [qwen3_5, qwen3_next, lfm2])
SCALES = pytest.mark.parametrize("scale", [1, 8])  # random weights near their start hide a leak


def scaled(config: Any, scale: float) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.mul_(scale)
    return model


@HYBRIDS
def test_layers_with_a_state_are_known_before_any_check(tiny, config):
    packing = choose_packing(scaled(config(), 1), prefixed(tiny, 9), "auto", 4)
    assert packing.mode == "off" and "carry a state from token to token" in packing.notes[0]


@pytest.mark.parametrize(("config", "scale"), [(qwen3_5, 1), (qwen3_5, 8), (qwen3_next, 1), (qwen3_next, 8), (lfm2, 8)])
@pytest.mark.parametrize("share", [True, False])
def test_a_state_that_runs_on_into_the_next_row_is_found_out(tiny, config, scale, share):
    """The check alone, as it would meet a family that nobody has listed (transformers #46093, ms-swift #9618)."""
    assert self_check(scaled(config(), scale), prefixed(tiny, 9), share) is not None


@HYBRIDS
def test_padded_rows_of_hybrids_have_the_losses_they_have_alone(tiny, config):
    model, rows = scaled(config(), 8).eval(), prefixed(tiny, 5)
    with torch.no_grad():
        together = label_loss(model, tiny.collate(rows), 1).item()
        alone = sum(label_loss(model, tiny.collate([row]), 1).item() for row in rows)
    assert together == pytest.approx(alone, rel=1e-5)


@SCALES
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("kind", [LlamaConfig, Qwen3Config, Gemma3TextConfig, Olmo3Config])
def test_no_other_rows_tokens_move_a_loss_by_one_bit(tiny, kind, scale, share):
    config = kind(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                  num_key_value_heads=2, pad_token_id=0)  # fmt: skip
    model, sample = scaled(config, scale).eval(), _sample(prefixed(tiny, 9))
    use_tree_attention(model)
    with torch.no_grad():
        for which in range(len(sample)):
            changed = _others_changed(sample, which)
            assert sum(a.input_ids != b.input_ids for a, b in zip(sample, changed, strict=True)) >= 2
            first, second = (_packed_loss(model, rows, which, share, torch.device("cpu")) for rows in (sample, changed))
            assert first == second


def test_a_leak_that_no_loss_of_today_shows_is_found_out(tiny, monkeypatch):
    """One row's attention sees a row beside it, by so little that the comparison with the plain forward passes."""
    model, rows = tiny.llama(lora=False), prefixed(tiny, 9)
    assert self_check(model, rows, share=False) is None
    through = model.model.layers[1].mlp.forward
    leak = lambda states: through(states) + 1e-3 * torch.nn.functional.pad(states, (0, 0, 1, 0))[:, :-1].cumsum(1)  # noqa: E731
    plain = lambda states: leak(states) if states.shape[1] > 20 else through(states)  # noqa: E731
    monkeypatch.setattr(model.model.layers[1].mlp, "forward", plain)
    monkeypatch.setattr("fitune.trainers.packing_support.FP32_TOLERANCE", 10.0)
    assert "when other rows of its pack have other tokens" in str(self_check(model, rows, share=False))
