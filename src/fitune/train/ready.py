"""Everything that can be known before a weight is loaded: hardware, model files, tokenizer, template, rows.

Every fault of the data is found here, in seconds, not after minutes of loading.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.config import Settings
from fitune.console import say
from fitune.data.prepare import PreparedData, prepare
from fitune.data.render import Renderer
from fitune.errors import SettingsError
from fitune.models.hardware import Hardware, Precision, choose_precision, detect
from fitune.models.load import load_config
from fitune.models.source import ModelSource, resolve
from fitune.models.template import Template, resolve_template
from fitune.models.tokenizer import load_tokenizer, stop_ids
from fitune.runs.manifest import folder_fingerprint


@dataclass(frozen=True)
class Ready:
    """What a run has before its model."""

    hardware: Hardware
    precision: Precision
    source: ModelSource
    tokenizer: Any
    template: Template
    renderer: Renderer
    data: PreparedData
    base_facts: dict[str, Any]

    def data_facts(self, train: str, test: str | None) -> dict[str, Any]:
        """For the manifest."""
        return {
            "train": train,
            "test": test,
            "train_rows": len(self.data.train),
            "test_rows": len(self.data.test),
            "hashes": dict(self.data.hashes),
            "report": self.data.report.to_dict(),
        }


def make_ready(settings: Settings) -> Ready:
    """Find the model, read and check the data.

    Raises:
        ModelError, DataError, SettingsError: with the place, the value and the fix.
    """
    hardware = detect(settings.model.device)
    precision = choose_precision(settings.model.precision, hardware)
    say(f"training on {hardware.device} ({hardware.name}) in {precision.name}: {precision.reason}")
    source = resolve(settings.model.name, settings.model.revision)
    config = load_config(source, settings.model.trust_remote_code)
    tokenizer = load_tokenizer(source, settings.model.trust_remote_code)
    template = resolve_template(tokenizer, settings.model.chat_template)
    renderer = make_renderer(tokenizer, template)
    data = read_data(settings, config, renderer)
    if not data.test and settings.eval.best_metric != "loss":
        raise SettingsError([
            f"eval.best_metric is {settings.eval.best_metric} and there are no held-out rows; "
            "set data.test or data.test_share, or leave it at loss"
        ])
    return Ready(hardware, precision, source, tokenizer, template, renderer, data, facts(source, template, precision))
