"""Log-probabilities and end states of rows: packed, padded and one by one are the same, gradients too."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fitune.ops.token_logprobs import count_by_row, end_states, make_row_batch, sum_by_row, token_logprobs
from fitune.ops.tree_attention import use_tree_attention


def plain_logprobs(model, row):
    """The trained tokens' log-probabilities by the model's own full logits."""
    ids = torch.tensor([row.input_ids])
    logprobs = F.log_softmax(model(input_ids=ids).logits[0, :-1].float(), -1)
    chosen = logprobs.gather(-1, ids[0, 1:, None])[:, 0]
    return chosen[torch.tensor(row.trained[1:])]


@pytest.fixture
def rows(tiny):
    """Two pairs that share a prompt, one of them a part of the answer, and a row alone."""
    made = tiny.make_rows(3, seed=4)
    row = type(made[0])
    a, b = made[0].input_ids[:4], made[1].input_ids[:3]
    ends = [(*a, 5, 6, 2), (*a, 5, 9, 9, 2), (*b, 7, 2), (*b, 8, 8, 2), made[2].input_ids]
    prompts = [4, 4, 3, 3, 2]
    return [
        row(ids, tuple(at >= prompt for at in range(len(ids))), number)
        for number, (ids, prompt) in enumerate(zip(ends, prompts, strict=True))
    ]


@pytest.mark.parametrize("mode", ["tree", "rows", "off"])
def test_a_layout_gives_each_row_what_it_has_alone(tiny, rows, mode):
    model = tiny.llama()
    model.eval()
    wanted = [plain_logprobs(model, row) for row in rows]
    if mode != "off":
        use_tree_attention(model.get_base_model())
    row_batch = make_row_batch(rows, mode)
    found = token_logprobs(model, row_batch)
    torch.testing.assert_close(found, torch.cat(wanted), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(
        sum_by_row(found, row_batch), torch.stack([one.sum() for one in wanted]), atol=1e-5, rtol=1e-5
    )
    assert count_by_row(row_batch).tolist() == [
        row.num_trained if hasattr(row, "num_trained") else sum(row.trained[1:]) for row in rows
    ]
    states = end_states(model, row_batch)
    for row, state in zip(rows, states, strict=True):
        alone = model.get_base_model().model(input_ids=torch.tensor([row.input_ids])).last_hidden_state[0, -1]
        torch.testing.assert_close(state, alone, atol=2e-6, rtol=1e-5)
    if mode == "tree":
        assert row_batch.computed_tokens == sum(len(row.input_ids) for row in rows) - 5 - 3


def test_gradients_are_those_of_rows_alone(tiny, rows):
    weights = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0])

    def gradients(packed):
        model = tiny.llama()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_B" in name:
                    value.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        if packed:
            use_tree_attention(model.get_base_model())
            row_batch = make_row_batch(rows, "tree")
            loss = (sum_by_row(token_logprobs(model, row_batch), row_batch) * weights).sum()
        else:
            loss = sum(plain_logprobs(model, row).sum() * weight for row, weight in zip(rows, weights, strict=True))
        loss.backward()
        return {name: value.grad for name, value in model.named_parameters() if value.requires_grad}

    one, other = gradients(True), gradients(False)
    for name, grad in one.items():
        torch.testing.assert_close(grad, other[name], atol=1e-5, rtol=1e-4)
