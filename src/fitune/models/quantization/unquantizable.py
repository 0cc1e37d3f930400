"""Linear layers that must keep their own type, since the model's code does more with them than multiply.

In: a model, on meta or not. Out: full names. The families' sheet (docs/families.md) tries every family over int8.
"""

from __future__ import annotations

import inspect
import re
from functools import cache

from torch import nn
from transformers.pytorch_utils import Conv1D


def unquantizable_layers(model: nn.Module) -> list[str]:
    """Routers with a result of their own, and layers whose weight the model reads past the layer (Mamba's dt_proj)."""
    modules = dict(model.named_modules())
    return [
        name
        for name, module in modules.items()
        if isinstance(module, nn.Linear | Conv1D) and (is_own_router(module) or _weight_is_read(modules, name))
    ]


def is_own_router(module: nn.Module) -> bool:
    """Whether a linear layer's class gives more than the product: Llama 4's and Phi-MoE's routers."""
    return type(module) is not nn.Linear and type(module).__name__.endswith("Router")


def _weight_is_read(modules: dict[str, nn.Module], name: str) -> bool:
    """Whether the code of the family names the layer's weight: `self.dt_proj.weight`, `block.attention.output.weight`."""
    place, _, last = name.rpartition(".")
    parent = modules.get(place)
    if parent is None or not place or getattr(parent, "slow_but_exact", None) is False:  # BLOOM's: switched off
        return False
    own, whole = _sources(type(parent))
    values = r"\.weight\b(?!\.(?:dtype|device|shape|size))"
    beside = re.escape(f".{place.rpartition('.')[2]}.{last}")
    return bool(re.search(rf"\bself\.{re.escape(last)}{values}", own) or re.search(beside + values, whole))


@cache
def _sources(kind: type[nn.Module]) -> tuple[str, str]:
    """Code of a class of transformers and of its file, initialisation left out; empty where there is none."""
    if not kind.__module__.startswith("transformers."):
        return "", ""
    module = inspect.getmodule(kind)
    if module is None:
        return "", ""
    return _without_init(inspect.getsource(kind)), _without_init(inspect.getsource(module))


def _without_init(source: str) -> str:
    return re.sub(r"\n    def _init_weights\(.*?(?=\n    def |\n    @|\nclass |\Z)", "", source, flags=re.DOTALL)
