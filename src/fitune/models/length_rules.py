"""Models that compute a row differently by its length: rotary frequencies that switch (LongRoPE) or grow (dynamic NTK).

In: a model's config. Out: a `LengthRule`, and padded batches cut so that each part is computed as its rows would be alone.
transformers looks at the longest row of a forward pass; a short row beside a long one would get the long one's frequencies.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig


@dataclass(frozen=True)
class LengthRule:
    """What row lengths mean to a model.

    Attributes:
        kind: transformers' name of the rotary embedding.
        limit: rows of up to so many tokens are computed alike.
        each_apart: longer ones each by their own length; else all of them alike.
    """

    kind: str
    limit: int
    each_apart: bool

    def side(self, length: int) -> int:
        """Rows of one side may share a forward pass."""
        if length <= self.limit:
            return 0
        return length if self.each_apart else 1

    def mixes(self, shortest: int, longest: int) -> bool:
        """Whether rows of these lengths lie on different sides."""
        return longest > self.limit and (self.each_apart or shortest <= self.limit)


def length_rule(config: PretrainedConfig) -> LengthRule | None:
    """The rule of a model's text part; None where length makes no difference."""
    text = config.get_text_config()
    given: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    several = [one for one in given.values() if isinstance(one, dict)]
    found: list[LengthRule] = []
    for one in several or [given]:
        kind = str(one.get("rope_type", "default"))
        if kind == "longrope":
            found.append(LengthRule(kind, one["original_max_position_embeddings"], each_apart=False))
        elif "dynamic" in kind:
            found.append(LengthRule(kind, text.max_position_embeddings, each_apart=True))
    return min(found, key=lambda rule: (rule.limit, not rule.each_apart), default=None)


def by_side(batch: Mapping[str, Tensor], rule: LengthRule | None) -> Iterator[dict[str, Tensor]]:
    """A right-padded batch (attention_mask BS beside others of B rows) in parts of one side each, no wider than needed."""
    if rule is None:
        yield dict(batch)
        return
    sides: dict[int, list[int]] = defaultdict(list)
    lengths = batch["attention_mask"].sum(1).tolist()
    for row, length in enumerate(lengths):
        sides[rule.side(length)].append(row)
    for rows in sides.values():
        width = max(lengths[row] for row in rows)
        yield {name: value[rows, :width] if value.ndim > 1 else value[rows] for name, value in batch.items()}


def forget_length(model: nn.Module, rule: LengthRule | None) -> None:
    """Before a forward pass: dynamic frequencies, which stay those of the longest pass so far, as at the beginning."""
    if rule is None or not rule.each_apart:
        return
    for module in model.modules():
        if hasattr(module, "original_max_seq_len") and hasattr(module, "max_seq_len_cached"):
            kinds = module.rope_type if isinstance(module.rope_type, dict) else {None: module.rope_type}
            device = next(module.buffers()).device
            with torch.no_grad():
                for layer in kinds:
                    first = torch.zeros(1, 1, device=device), torch.zeros(1, 1, dtype=torch.long, device=device)
                    module(*first) if layer is None else module(*first, layer)
