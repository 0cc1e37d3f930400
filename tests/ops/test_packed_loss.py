"""Tree packs against the same rows one by one: transformers' own forward with full logits is the reference."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    OPTConfig,
    Qwen2Config,
    Qwen3Config,
)

from fitune.data.packing.bins import pack_rows
from fitune.data.packing.tree import build_tree
from fitune.ops import grouped_attention
from fitune.ops.packed_loss import pack_loss, to_pack
from fitune.ops.tree_attention import use_tree_attention

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {**SIZES, "intermediate_size": 48, "num_key_value_heads": 2}
CONFIGS = {
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=256,
        resid_pdrop=0,
        embd_pdrop=0,
        attn_pdrop=0,
        bos_token_id=None,
        eos_token_id=None,
    ),
    "llama": lambda: LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "gpt_neox": lambda: GPTNeoXConfig(**SIZES, intermediate_size=48),
    "opt": lambda: OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=24, dropout=0.0),
    "qwen2": lambda: Qwen2Config(**GROUPED),
    "qwen3": lambda: Qwen3Config(**GROUPED, head_dim=16),
    "gemma2": lambda: Gemma2Config(
        **GROUPED,
        head_dim=16,
        sliding_window=5,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=3.0,
        query_pre_attn_scalar=16,
    ),
    "cohere": lambda: CohereConfig(**GROUPED, logit_scale=0.25),
    "granite": lambda: GraniteConfig(**GROUPED, logits_scaling=4.0),
}


@dataclass(frozen=True)
class Row:
    input_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    row_number: int = 0


def make_model(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[name](), attn_implementation="eager")
    with torch.no_grad():  # fresh weights give nearly uniform attention, which would hide a wrong mask
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="module", params=CONFIGS)
def models(request):
    """The same model twice: one for the reference, one for packs."""
    plain, packed = make_model(request.param), make_model(request.param)
    use_tree_attention(packed)
    return plain, packed


def one_by_one(model, rows):
    """Each row alone, full logits, summed over its trained tokens."""
    total = 0.0
    for row in rows:
        logits_TV = model(input_ids=torch.tensor([row.input_ids])).logits[0].float()
        for index in range(1, len(row.input_ids)):
            if row.trained[index]:
                total = total - torch.log_softmax(logits_TV[index - 1], -1)[row.input_ids[index]]
    return total


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def assert_same(models, rows, packs):
    plain, packed = models
    count = max(1, sum(sum(row.trained[1:]) for row in rows))
    expected = one_by_one(plain, rows) / count
    ours = sum(pack_loss(packed, to_pack(tree, "cpu"), count) for tree in packs)
    value, reference = float(torch.as_tensor(ours).detach()), float(torch.as_tensor(expected).detach())
    assert abs(value - reference) < 1e-6 * max(1.0, abs(reference))
    if not isinstance(expected, torch.Tensor):
        return
    wanted, got = gradients(plain, expected), gradients(packed, ours)
    assert wanted.keys() == got.keys()
    # Some gradients are zero in theory (a key's bias shifts all scores alike), and only rounding in both.
    rounding = 3e-7 * float(torch.stack([gradient.norm() for gradient in wanted.values()]).norm())
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-5 * gradient.norm() + rounding, name


def shared_rows():
    """Two system prompts, branchings in mid-answer, a row that is a prefix of another, a row twice, one of one token."""
    torch.manual_seed(1)
    draw = lambda count: tuple(torch.randint(0, VOCABULARY, (count,)).tolist())  # noqa: E731
    system, other, question = draw(9), draw(4), draw(3)
    ids = [system + draw(7), system + question + draw(5), system + question + draw(8), other + draw(6), other, draw(1)]
    ids += [ids[0], ids[1] + draw(3)]
    return [
        Row(row, tuple(position >= 6 + number % 3 for position in range(len(row))), number)
        for number, row in enumerate(ids)
    ]


def test_a_pack_equals_its_rows(models):
    assert_same(models, shared_rows(), [build_tree(shared_rows())])


def test_rows_side_by_side_equal_themselves(models):
    assert_same(models, shared_rows(), [build_tree(shared_rows(), share=False)])


def test_several_packs_of_a_step_add_up(models):
    packs = pack_rows(shared_rows(), 24)
    assert len(packs) > 1
    assert_same(models, shared_rows(), packs)


def test_every_token_trained_and_blocks_smaller_than_rows(models, monkeypatch):
    """Blocks of 4 queries and nothing kept: the path that long rows take."""
    monkeypatch.setattr(grouped_attention, "BLOCK_QUERIES", 4)
    monkeypatch.setattr(grouped_attention, "KEEP_KEYS", 0)
    rows = [Row(row.input_ids, (True,) * len(row.input_ids), row.row_number) for row in shared_rows()]
    assert_same(models, rows, [build_tree(rows)])


@st.composite
def forests(draw):
    """Rows over three tokens, so that prefixes meet at every depth."""
    count = draw(st.integers(1, 7))
    rows = []
    for number in range(count):
        ids = draw(st.lists(st.integers(0, 2), min_size=1, max_size=12))
        trained = draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
        rows.append(Row(tuple(ids), tuple(trained), number))
    return rows


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=forests())
def test_any_forest_equals_its_rows(models, rows):
    assert_same(models, rows, [build_tree(rows)])
