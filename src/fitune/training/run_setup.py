"""`RunSetup`: everything that is known of a run before a weight is loaded; setup.py makes it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from fitune.config.sections import Settings
from fitune.data.prepare import PreparedData
from fitune.data.render.renderer import Renderer
from fitune.models.hardware import Hardware, Precision
from fitune.models.source import ModelSource
from fitune.models.template import Template
from fitune.planning.model_config import config_of


@dataclass(frozen=True)
class RunSetup:
    """What a run has before its model, and the settings that it will be trained with."""

    settings: Settings
    fit_facts: dict[str, object]
    """How the settings were fitted to the memory, for the manifest; empty when they are as they were asked for."""
    exclude: tuple[str, ...]
    """Sentences that the demo task does not make."""
    hardware: Hardware
    precision: Precision
    source: ModelSource
    config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    template: Template
    renderer: Renderer
    data: PreparedData
    base_facts: dict[str, object]

    @cached_property
    def plan_config(self) -> dict[str, object]:
        """The values of the model's config by the same way as `fitune plan` takes them, so that both find the same traces.

        Raises:
            ModelError: as `fitune.planning.model_config.config_of`.
        """
        return config_of(self.source.name, self.source.revision).values

    def data_facts(self) -> dict[str, object]:
        """For the manifest."""
        return {
            "train": self.settings.data.train,
            "eval": self.settings.data.eval,
            "exclude": list(self.exclude),
            "train_rows": len(self.data.train),
            "eval_rows": len(self.data.eval),
            "hashes": dict(self.data.hashes),
            "left_out": list(self.data.train_read.left_out_in_words if self.data.train_read else ()),
            "report": self.data.train_report.to_dict(),
            "eval_report": self.data.eval_report.to_dict() if self.data.eval_report else None,
        }
