"""Head and loss in chunks: torch's cross_entropy over full logits is the reference."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fitune.ops.chunked_cross_entropy import Entries, Head, chunked_cross_entropy

HIDDEN, VOCABULARY, ROWS = 12, 40, 9


def entries():
    """Nine positions, two of which predict two tokens, with weights."""
    rows = torch.tensor([0, 1, 1, 2, 3, 4, 5, 5, 6, 7, 8])
    targets = torch.tensor([3, 4, 39, 0, 4, 4, 1, 2, 7, 8, 9])
    weights = torch.tensor([1.0, 1, 2, 1, 3, 1, 1, 1, 1, 1, 2])
    return Entries(rows, targets, weights, torch.zeros(ROWS).index_add_(0, rows, weights))


def reference(hidden, head, smoothing):
    what = entries()
    logits = head.module(hidden).float() * head.scale
    if head.softcap is not None:
        logits = torch.tanh(logits / head.softcap) * head.softcap
    losses = F.cross_entropy(logits[what.rows], what.targets, reduction="none", label_smoothing=smoothing)
    return (losses * what.weights).sum()


@pytest.fixture(params=[7 * VOCABULARY, 10**9, 1], ids=["two chunks", "one chunk", "row by row"])
def chunk(request, monkeypatch):
    monkeypatch.setattr("fitune.ops.chunked_cross_entropy.CPU_CHUNK_LOGITS", request.param)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("scale", "softcap"), [(1.0, None), (0.25, None), (1.0, 2.0), (0.5, 3.0)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_cross_entropy_over_full_logits(chunk, frozen, bias, scale, softcap, smoothing):
    torch.manual_seed(0)
    module = torch.nn.Linear(HIDDEN, VOCABULARY, bias=bias).requires_grad_(not frozen)
    head = Head(module, scale, softcap)
    assert head.frozen_linear == frozen
    hidden = torch.randn(ROWS, HIDDEN, requires_grad=True)
    ours = chunked_cross_entropy(hidden, head, entries(), smoothing) * 0.5
    expected = reference(hidden, head, smoothing) * 0.5
    assert torch.allclose(ours, expected, rtol=1e-6, atol=0)
    inputs = [hidden, *(module.parameters() if not frozen else ())]
    for got, wanted in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        assert (got - wanted).norm() <= 1e-5 * wanted.norm()


def test_logits_of_all_positions_never_exist(monkeypatch):
    """The largest matrix with a column for each word has a chunk's rows, forward and backward."""
    monkeypatch.setattr("fitune.ops.chunked_cross_entropy.CPU_CHUNK_LOGITS", 3 * VOCABULARY)
    seen = []
    original = F.linear
    monkeypatch.setattr(F, "linear", lambda *args: seen.append(original(*args)) or seen[-1])
    hidden = torch.randn(ROWS, HIDDEN, requires_grad=True)
    head = Head(torch.nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False))
    chunked_cross_entropy(hidden, head, entries()).backward()
    assert [tuple(logits.shape) for logits in seen] == [(3, VOCABULARY)] * 3


def test_bf16_is_as_near_to_fp32_as_full_logits_are():
    torch.manual_seed(0)
    hidden = torch.randn(ROWS, HIDDEN)
    module = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False).requires_grad_(False)
    exact = hidden.clone().requires_grad_()
    wanted = torch.autograd.grad(reference(exact, Head(module), 0.0), exact)[0]
    low = hidden.bfloat16().requires_grad_()
    head = Head(module.bfloat16())
    ours = chunked_cross_entropy(low, head, entries())
    assert ours.dtype == torch.float32
    got = torch.autograd.grad(ours, low)[0].float()
    plain = torch.autograd.grad(reference(low, head, 0.0), low)[0].float()
    assert (got - wanted).norm() <= 1.1 * (plain - wanted).norm()


def test_nothing_to_predict_gives_zero_and_a_gradient_path():
    none = torch.zeros(0, dtype=torch.long)
    hidden = torch.zeros(0, HIDDEN, requires_grad=True)
    empty = Entries(none, none, torch.zeros(0), torch.zeros(0))
    loss = chunked_cross_entropy(hidden, Head(torch.nn.Linear(HIDDEN, VOCABULARY)), empty)
    loss.backward()
    assert loss.item() == 0.0
