"""The methods of training by name. Nothing here imports torch.

A method is a folder of this package: ``config.py`` holds its settings section and its facts, ``trainer.py`` its functions,
which `Method.runtime` imports.
"""

from __future__ import annotations

from fitune.methods.dpo.config import DPO
from fitune.methods.grpo.config import GRPO
from fitune.methods.kto.config import KTO
from fitune.methods.lm.config import LM
from fitune.methods.method import Method
from fitune.methods.orpo.config import ORPO
from fitune.methods.ppo.config import PPO
from fitune.methods.reward.config import REWARD
from fitune.methods.sft.config import SFT
from fitune.methods.simpo.config import SIMPO

METHODS: dict[str, Method] = {method.name: method for method in (SFT, LM, REWARD, DPO, ORPO, SIMPO, KTO, PPO, GRPO)}
