"""Open what the user names: a run, an adapter folder, or a model; each becomes a model to ask and its renderer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fitune.adapters.folder import grow_for, load_adapter, load_tokenizer_of, read_facts
from fitune.data.render import Renderer
from fitune.errors import ModelError, RunError, did_you_mean
from fitune.models.hardware import choose_precision, detect
from fitune.models.load import load_base
from fitune.models.quantize import Quantization
from fitune.models.source import resolve
from fitune.models.template import Template, resolve_template
from fitune.models.tokenizer import load_tokenizer, stop_ids


@dataclass(frozen=True)
class Target:
    """A model ready to be asked. `adapter` is None for a bare model."""

    model: Any
    renderer: Renderer
    base_name: str
    adapter: Path | None

    def without_adapter(self) -> AbstractContextManager[None]:
        """A context in which the base answers alone."""
        return self.model.disable_adapter() if self.adapter else nullcontext()


def open_target(name: str, runs_folder: str = "runs", device: str = "auto", precision: str = "auto") -> Target:
    """Load a run's result (by name or folder), an adapter folder, or any model that training takes.

    Raises:
        RunError: a run that has saved nothing yet.
        ModelError: nothing of that name, or an adapter whose base cannot be had.
    """
    found = _find(name, runs_folder)
    hardware = detect(device)
    chosen = choose_precision(precision, hardware)
    if found is None or not (found / "adapter_config.json").exists():
        source = resolve(str(found) if found else name)
        tokenizer = load_tokenizer(source)
        base = load_base(source, tokenizer, resolve_template(tokenizer), hardware, chosen)
        return Target(base.model, Renderer(tokenizer, base.template.text, base.stop_ids), source.name, None)
    facts = read_facts(found)
    source = resolve(str(facts["base"]["name"]), facts["base"]["revision"])
    tokenizer = load_tokenizer_of(found) or load_tokenizer(source)
    saved = facts.get("template")
    template = resolve_template(tokenizer)
    if saved:
        template = Template(tokenizer.chat_template, saved["origin"], saved["end_of_turn"])
    quantization = Quantization.from_dict(facts.get("quantization"))  # the base answers as it did in training
    base = load_base(source, tokenizer, template, hardware, chosen, quantization=quantization)
    grow_for(base.model, tokenizer, facts, template)
    model = load_adapter(base.model, found)
    stops = stop_ids(tokenizer, base.model.generation_config, template)
    return Target(model.eval(), Renderer(tokenizer, template.text, stops), source.name, found)


def _find(name: str, runs_folder: str) -> Path | None:
    """The folder of a run's result or of an adapter, or None when the name is that of a model."""
    for path in (Path(name).expanduser(), Path(runs_folder) / name):
        if (path / "adapter_config.json").exists():
            return path
        for result in (path / "adapter", path / "model"):
            if result.is_dir():
                return result
        if (path / "manifest.json").exists():
            raise RunError(
                f"run {path} has saved no adapter or model yet; finish it with: fitune train --resume {path}"
            )
    runs = Path(runs_folder)
    known = [entry.name for entry in runs.iterdir() if entry.is_dir()] if runs.is_dir() else []
    if hint := did_you_mean(name, known):
        try:
            resolve(name)
        except ModelError as error:
            raise ModelError(f'there is no run or model "{name}"{hint}') from error
    return None
