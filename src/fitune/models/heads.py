"""A scalar on top of hidden states: the reward of a whole answer, or the value of each of its tokens.

In: hidden states of the model's body. Out: one fp32 number a state.
Knows nothing of rows or losses. A head hangs on the adapted model as its submodule `HEAD`, so that optimizer and
checkpoints meet it as they meet the adapter; on disk it is a file beside the adapter, which plain PEFT does not read.

H hidden size.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fitune.errors import ModelError
from fitune.models.base_model import base_model_of

HEAD = "fitune_head"
HEAD_FILE = "head.safetensors"


class ScalarHead(nn.Module):
    """w·h + offset, in fp32 whatever the hidden states are.

    Args:
        spread: standard deviation of w at the start; None takes 1/√(H + 1) (Stiennon et al. 2020, arXiv 2009.01325,
            appendix B.1). 0 starts with the same number everywhere.
        offset: whether a constant is learnt too. A preference does not depend on one; a value does.
    """

    def __init__(self, hidden_size: int, offset: bool = False, spread: float | None = None):
        super().__init__()
        deviation = (hidden_size + 1) ** -0.5 if spread is None else spread
        self.weight = nn.Parameter(torch.randn(hidden_size) * deviation)
        # Not named "bias": PEFT takes parameters of that name for the base's.
        self.offset = nn.Parameter(torch.zeros(())) if offset else None

    def forward(self, states: Tensor) -> Tensor:
        """(…, H) → (…)."""
        with torch.autocast(states.device.type, enabled=False):
            scores = states.float() @ self.weight.float()
            return scores if self.offset is None else scores + self.offset.float()


def put_head(model: nn.Module, offset: bool = False, spread: float | None = None, name: str = HEAD) -> ScalarHead:
    """Hang a fresh head on the model, on its device; returns it."""
    config = base_model_of(model).config.get_text_config()
    head = ScalarHead(config.hidden_size, offset, spread).to(next(model.parameters()).device)
    model.add_module(name, head)
    return head


def head_of(model: nn.Module, name: str = HEAD) -> ScalarHead:
    """The model's head."""
    return cast(ScalarHead, model.get_submodule(name))


def head_tensors(head: ScalarHead) -> dict[str, Tensor]:
    """What is written: weight (H), and offset () where there is one."""
    return {name: value.detach().float().cpu().contiguous() for name, value in head.named_parameters()}


def read_head(folder: Path, hidden_size: int) -> ScalarHead:
    """The head beside an adapter.

    Raises:
        ModelError: none is there, it is damaged, or it is of another model's size.
    """
    path = folder / HEAD_FILE
    if not path.exists():
        raise ModelError(f"{folder} contains no reward model ({HEAD_FILE} is missing); train one with method: reward")
    try:
        tensors = load_file(path)
    except Exception as error:  # safetensors raises its own class for each kind of damage
        raise ModelError(f"{path} is damaged: {error}") from error
    shape = tuple(tensors["weight"].shape) if "weight" in tensors else None
    if shape != (hidden_size,):
        raise ModelError(f"{path} is a head for hidden states of {shape}; this model's have {hidden_size} values")
    head = ScalarHead(hidden_size, offset="offset" in tensors)
    head.load_state_dict(tensors)
    return head
