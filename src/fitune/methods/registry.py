"""The methods of training by name. Nothing here imports torch.

A method is a folder of this room: ``config.py`` holds its settings section and its facts, ``trainer.py`` its functions,
which `Method.runtime` imports. A new one is a line in `NAMES`.
"""

from __future__ import annotations

from importlib import import_module

from fitune.methods.method import Method

NAMES = (
    "sft",
    "lm",
    "reward",
    "dpo",
    "ppo",
    "grpo",
)

METHODS: dict[str, Method] = {name: import_module(f"fitune.methods.{name}.config").METHOD for name in NAMES}
