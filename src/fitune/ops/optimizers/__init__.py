"""The optimizers: the registry that settings, training, the plan, the fit ladder and the documents share.

In: a name of `train.optimizer`. Out: its facts, the sizes of its states among them. Importing this imports no torch.
A new optimizer is an `Optimizer` in a file of its own and a line here (docs/extending.md).
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping

from fitune.ops.optimizers.adafactor import ADAFACTOR
from fitune.ops.optimizers.adamw import ADAMW, ADAMW_FOREACH, ADAMW_LOOP
from fitune.ops.optimizers.adamw_8bit import ADAMW_8BIT, PAGED_ADAMW, PAGED_ADAMW_8BIT
from fitune.ops.optimizers.optimizer import Optimizer
from fitune.ops.optimizers.sgd import SGD

# What `train.optimizer` may be.
OPTIMIZERS: dict[str, Optimizer] = {
    optimizer.name: optimizer for optimizer in (ADAMW, ADAMW_8BIT, PAGED_ADAMW_8BIT, ADAFACTOR, SGD)
}
# What other tools train with, for plans of their loops.
OTHERS: dict[str, Optimizer] = {optimizer.name: optimizer for optimizer in (ADAMW_FOREACH, ADAMW_LOOP, PAGED_ADAMW)}
PLANNED: Mapping[str, Optimizer] = ChainMap(OTHERS, OPTIMIZERS)


def of_optim(optim: str) -> Optimizer | None:
    """The optimizer that `TrainingArguments.optim` means; None for one that is not registered."""
    return next((optimizer for optimizer in OPTIMIZERS.values() if optimizer.optim == optim), None)
