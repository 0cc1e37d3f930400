"""Options and kinds of models × packing: losses equal those of row by row, or the layout gives way and says why.

Rows lie on both sides of every switch (24 tokens): windows, chunks, rotary embeddings that switch or grow with length.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations import neftune

from fitune.data.packing.padding import pad_collate
from fitune.models.length_rules import length_rule
from fitune.trainers.base import FituneTrainer
from fitune.trainers.packed import PackedTrainer
from fitune.trainers.packing_support import choose_packing

SIZES: dict[str, Any] = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
LONG = [1.0, 3.0, 6.0, 8.0]
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": LONG,
            "original_max_position_embeddings": 24}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 24}
LLAMA4 = {"head_dim": 8, "intermediate_size_mlp": 64, "num_local_experts": 2, "no_rope_layers": [1, 0], "floor_scale": 8,
          "attn_scale": 0.5}  # fmt: skip
# name → (model type, changes to its config, layout that tree and rows come down to, word of the reason)
TABLE: dict[str, tuple[str, dict[str, Any], tuple[str, str], str]] = {
    "plain": ("llama", {}, ("tree", "rows"), ""),
    "yarn": ("llama", {"rope_parameters": YARN}, ("tree", "rows"), ""),
    "longrope": ("phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 24}, ("off", "off"), "longrope"),
    "dynamic": ("llama", {"max_position_embeddings": 24, "rope_parameters": DYNAMIC}, ("off", "off"), "dynamic"),
    "window": ("mistral", {"sliding_window": 24}, ("tree", "rows"), ""),
    "window and soft-caps": (
        "gemma2", {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 24, "attn_logit_softcapping": 5.0,
                   "final_logit_softcapping": 3.0}, ("tree", "rows"), "",
    ),
    "logit scale": ("cohere", {"logit_scale": 0.25}, ("tree", "rows"), ""),
    "multipliers": (
        "granite", {"logits_scaling": 4.0, "embedding_multiplier": 3.0, "residual_multiplier": 0.5}, ("tree", "rows"), "",
    ),
    "temperature": ("llama4_text", {**LLAMA4, "attn_temperature_tuning": True}, ("off", "off"), "attn_temperature_tuning"),
    "chunks": (
        "llama4_text", {**LLAMA4, "attn_temperature_tuning": False, "attention_chunk_size": 24}, ("off", "off"),
        "chunked attention",
    ),
    "balance loss": (
        "mixtral", {"num_local_experts": 4, "output_router_logits": True, "router_aux_loss_coef": 10.0},
        ("tree", "rows"), "",
    ),
    "attention dropout": ("llama", {"attention_dropout": 0.1}, ("off", "off"), "drops attention weights"),
}  # fmt: skip


def mixed_rows(tiny: Any) -> list[Any]:
    """Twelve rows of 4 to 40 tokens; half share a prefix, and the last token of each is not trained."""
    rows = []
    for row in tiny.make_rows(12, longest=40):
        ids = (5, 6, 7, 8, *row.input_ids) if row.row_number % 2 else row.input_ids
        rows.append(type(row)(ids, (False, False, *[True] * (len(ids) - 3), False), row.row_number))
    assert {len(row.input_ids) > 24 for row in rows} == {True, False}
    return rows


def made(kind: str, changed: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SIZES, **changed}))
    with torch.no_grad():
        for value in model.parameters():
            if value.dim() > 1:
                value.mul_(8)
    return model


def row_by_row(model: Any, rows: list[Any]) -> float:
    """Mean loss of a trained token by the model's own forward, each row in a model that has seen no other."""
    total, count = 0.0, 0
    for row in rows:
        ids_BT = torch.tensor([row.input_ids])
        with torch.no_grad():
            logits_TV = copy.deepcopy(model).eval()(ids_BT, use_cache=False).logits[0, :-1]
        trained_T = torch.tensor(row.trained[1:])
        losses_T = torch.nn.functional.cross_entropy(logits_TV, ids_BT[0, 1:], reduction="none")[trained_T]
        total, count = total + losses_T.sum().item(), count + len(losses_T)
    return total / count


def trainer_of(tiny: Any, folder: Any, model: Any, rows: list[Any], packing: Any, **changed: Any) -> FituneTrainer:
    twin = tiny.trainer(folder, model, rows, rows, batch_size=12, micro_batch_size=4, **changed)
    ours = [one for one in twin.callback_handler.callbacks if type(one).__module__ == "fitune.trainers.callbacks"]
    collate = lambda batch: pad_collate(batch, 0)  # noqa: E731
    if packing.mode == "off":
        trainer = FituneTrainer(model, twin.args, rows, rows, collate, callbacks=ours)
    else:
        trainer = PackedTrainer(model, twin.args, rows, rows, collate, callbacks=ours, packing=packing)
    trainer.logged = twin.logged
    return trainer


@pytest.mark.parametrize("wanted", ["tree", "rows", "off"])
@pytest.mark.parametrize("name", TABLE)
def test_losses_are_those_of_row_by_row_in_every_layout(tiny, tmp_path, name, wanted):
    kind, changed, layouts, reason = TABLE[name]
    rows, model = mixed_rows(tiny), made(kind, changed)
    expected = row_by_row(model, rows)
    packing = choose_packing(model, rows, wanted, micro_batch_rows=4)
    assert packing.mode == dict(zip(("tree", "rows", "off"), (*layouts, "off"), strict=True))[wanted], packing.notes
    if reason and wanted != "off":
        assert reason in packing.notes[0]
    trainer = trainer_of(tiny, tmp_path, model, rows, packing, max_steps=1, every_steps=1, learning_rate=1e-9)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=2e-5)
    if name == "attention dropout":
        return
    trainer.train()
    assert next(row["loss"] for row in trainer.logged if row["kind"] == "train") == pytest.approx(expected, rel=2e-5)


def test_rows_of_different_sides_would_change_each_other(tiny):
    """Without this the table could not fail: beside a long row a short one has another loss."""
    for name in ("longrope", "dynamic"):
        kind, changed, _, _ = TABLE[name]
        rows, model = mixed_rows(tiny), made(kind, changed).eval()
        batch = pad_collate(rows, 0)
        with torch.no_grad():
            together = model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
        assert abs(together.item() - row_by_row(made(kind, changed), rows)) > 1e-3


def test_rows_of_one_side_are_packed(tiny):
    kind, changed, _, _ = TABLE["longrope"]
    rows = [row for row in mixed_rows(tiny) if len(row.input_ids) <= 24]
    assert choose_packing(made(kind, changed), rows, "auto", 4).mode == "tree"
    assert choose_packing(made(kind, changed), rows, "auto", 4, longest=25).mode == "off"


@pytest.mark.parametrize("wanted", ["tree", "rows", "off"])
def test_noise_follows_the_row_and_not_its_pack(tiny, tmp_path, monkeypatch, wanted):
    """T11: NEFTune's noise is alpha / √(length · width), and shared prefixes would share a draw."""
    rows, model, alpha = mixed_rows(tiny), made("llama", {}), 5.0
    packing = choose_packing(model, rows, wanted, 4, noise=True)
    assert packing.mode == {"tree": "rows"}.get(wanted, wanted)
    assert ("NEFTune" in " ".join(packing.notes)) == (wanted == "tree")
    trainer = trainer_of(
        tiny, tmp_path, model, rows, packing, max_steps=1, every_steps=1, overrides={"neftune_noise_alpha": alpha}
    )
    seen: list[tuple[int, float]] = []
    upstream = neftune.neftune_post_forward_hook

    def watched(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        noise = upstream(module, inputs, output)
        seen.append((output.shape[1], noise.abs().max().item()))
        return noise

    monkeypatch.setattr(neftune, "neftune_post_forward_hook", watched)
    trainer.evaluate()
    assert not seen
    trainer.train()
    assert sorted(length for length, _ in seen) == sorted(len(row.input_ids) for row in rows)
    for length, largest in seen:
        assert 0.9 < largest / (alpha / math.sqrt(length * 32)) <= 1.0
    assert not hasattr(model.get_input_embeddings(), "neftune_noise_alpha")


def test_rules_of_configs():
    for name, limit, apart in (("longrope", 24, False), ("dynamic", 24, True)):
        kind, changed, _, _ = TABLE[name]
        rule = length_rule(AutoConfig.for_model(kind, **{**SIZES, **changed}))
        assert rule is not None and (rule.limit, rule.each_apart) == (limit, apart)
        assert [rule.side(length) for length in (1, 24, 25, 26)] == [0, 0, *((25, 26) if apart else (1, 1))]
        assert rule.mixes(20, 25) and not rule.mixes(20, 24) and rule.mixes(25, 26) == apart
    assert length_rule(AutoConfig.for_model("llama", **SIZES)) is None
