"""Packs of a mixture: its experts see the tokens of all rows at once, and no row's loss may move with another's tokens."""

from __future__ import annotations

import pytest
import torch

from fitune.adapters.inject import attach, lora_config
from fitune.data.token_rows import TokenRow
from fitune.ops.tree_attention import use_tree_attention
from fitune.trainers.packing_support import _others_changed, _packed_loss, self_check

MIXTURES = ("mixtral", "qwen3_moe", "olmoe", "glm4_moe", "qwen2_moe", "granitemoe")
ROUNDING = 2e-6  # an expert's product with more or fewer rows adds in another order


def rows_of(count: int = 5) -> list[TokenRow]:
    """Rows of which two begin alike."""
    torch.manual_seed(1)
    made = []
    for number in range(count):
        ids = [5, 6, 7, 8] * (number < 2) + torch.randint(9, 300, (9 + number,)).tolist()
        made.append(TokenRow(tuple(ids), (False,) * 5 + (True,) * (len(ids) - 5), number))
    return made


def adapted(folder, scale: float):
    """A mixture with adapters, its weights `scale` times as large: a router near its start hides a leak."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    model = attach(model, lora_config(model, rank=2)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(0, 0.05)
    return model


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("family", MIXTURES)
def test_no_loss_moves_when_other_rows_change(tiny_model, family, share, scale):
    model, rows = adapted(tiny_model(family), scale), rows_of()
    assert self_check(model, rows, share) is None
    use_tree_attention(model.get_base_model())
    with torch.no_grad():
        for which in range(len(rows)):
            alone = _packed_loss(model, rows, which, share, torch.device("cpu"))
            beside = _packed_loss(model, _others_changed(rows, which), which, share, torch.device("cpu"))
            assert abs(alone - beside) <= ROUNDING * max(1.0, alone)


def test_the_test_sees_a_leak_through_an_expert(tiny_model, monkeypatch):
    from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock

    model, rows = adapted(tiny_model("mixtral"), 8), rows_of()
    through = MixtralSparseMoeBlock.forward
    monkeypatch.setattr(
        MixtralSparseMoeBlock,
        "forward",
        lambda self, states: through(self, states) + 1e-2 * states.mean(1, keepdim=True),
    )
    assert self_check(model, rows, share=False) is not None
