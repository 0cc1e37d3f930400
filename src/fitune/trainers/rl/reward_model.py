"""A reward run as a reward: its adapter and its head lie on the base that the policy is trained on.

In: the policy's model, the run's name. Out: a function for `fitune.rewards.mix`.
One base in memory: scoring switches the adapter for a forward pass, and switches it back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch

from fitune.adapters.adapter_folder import add_adapter, check_belongs, read_facts, template_digest
from fitune.adapters.locate import find_adapter
from fitune.adapters.reference import switched
from fitune.data.packing.bins import Mode
from fitune.data.token_rows import TokenRow
from fitune.errors import ModelError
from fitune.models.base_model import base_model_of
from fitune.models.heads import read_head
from fitune.models.template import Template
from fitune.ops.token_logprobs import end_states, make_row_batch
from fitune.rewards.library import Reward
from fitune.trainers.oom_recovery import OomRecovery, PassSize

if TYPE_CHECKING:
    from peft import PeftModel


def load_reward_model(
    model: PeftModel,
    name: str,
    template: Template,
    runs_folder: str,
    mode: Mode,
    generation_batch_size: int,
    autocast: Callable[[], AbstractContextManager[object]],
) -> Reward:
    """The reward that the run ``name`` has learnt, in standard deviations from the mean of its own data's answers.

    Args:
        model: the policy's PEFT model; it gains an adapter, frozen.
        mode: how rows are laid out.
        autocast: makes the context in which the model computes.

    Raises:
        ModelError: no reward run, or one over another base or another chat template.
    """
    folder = find_adapter(name, runs_folder, "rl.rewards run")
    check_belongs(base_model_of(model), folder)
    head = read_head(folder, base_model_of(model).config.get_text_config().hidden_size)
    facts = read_facts(folder)
    scale = facts.get("reward") or {}
    middle, spread = scale.get("mean", 0.0), scale.get("std") or 1.0
    saved = (facts.get("template") or {}).get("sha256")
    if saved not in (None, template_digest(template)):
        raise ModelError(
            f"the reward model in {folder} was trained with another chat template than this run's ({template.origin}); "
            f"set model.chat_template to {folder / 'chat_template.jinja'}"
        )
    own = f"reward{sum(other.startswith('reward') for other in model.peft_config)}"
    add_adapter(model, folder, own)
    for parameter_name, value in model.named_parameters():
        if f".{own}." in parameter_name:
            value.requires_grad_(False)
    head.requires_grad_(False).to(next(model.parameters()).device)

    recovery = OomRecovery(
        PassSize(generation_batch_size, "answer"),
        where=lambda: f"while {name} scores answers",
        advice="Lower rl.max_new_tokens",
    )

    def passes(rows: Sequence[TokenRow]) -> list[float]:
        found: list[float] = []
        for here in recovery.slices(len(rows)):
            row_batch = make_row_batch(rows[here], mode, next(model.parameters()).device)
            found += ((head(end_states(model, row_batch)) - middle) / spread).tolist()
        return found

    def score(answers: Sequence[str], token_ids: Sequence[tuple[int, ...]]) -> list[float]:
        was_training = model.training
        rows = [TokenRow(ids, (False,) * (len(ids) - 1) + (True,), number) for number, ids in enumerate(token_ids)]
        model.eval()
        try:
            with torch.no_grad(), switched(model, own), autocast():
                return recovery.run(passes, rows)
        finally:
            model.train(was_training)

    return score
