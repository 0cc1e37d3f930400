"""Open what the user names: a run, an adapter folder, or a model; each becomes a model to ask and its renderer."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from peft import PeftModel

from fitune.adapters.adapter_folder import grow_for, load_adapter, load_tokenizer_of, read_facts
from fitune.adapters.locate import Facts, merged_inside
from fitune.adapters.premerge import merge_into
from fitune.console import warn
from fitune.data.render.asking import Asking
from fitune.data.render.renderer import Renderer
from fitune.errors import ModelError, RunError, did_you_mean
from fitune.models.hardware import Hardware, Precision, choose_precision, detect
from fitune.models.load_base import LoadedBase, load_base
from fitune.models.load_config import load_config
from fitune.models.quantization.quantize import NO_QUANTIZATION, QuantizationConfig
from fitune.models.source import ModelSource, Origin, resolve
from fitune.models.template import Template, resolve_template
from fitune.models.tokenizer import check_vocabulary, load_tokenizer, stop_ids
from fitune.runs.compare import read_settings
from fitune.runs.run_folder import MANIFEST, SETTINGS, RunFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from fitune.evaluation.generation import LanguageModel


@dataclass(frozen=True, repr=False)
class Target:
    """A model ready to be asked. `adapter` is None for a bare model; `source` is where the (base) model came from."""

    model: LanguageModel
    renderer: Renderer
    base_name: str
    adapter: Path | None
    source: ModelSource | None = None

    def __repr__(self) -> str:
        return f"Target({self.base_name}{f' with {self.adapter}' if self.adapter else ''})"

    def without_adapter(self) -> AbstractContextManager[None]:
        """A context in which the base answers alone."""
        return self.peft_model.disable_adapter() if self.adapter else nullcontext()

    @property
    def peft_model(self) -> PeftModel:
        """The model, which must have an adapter.

        Raises:
            ModelError: it has none.
        """
        if not isinstance(self.model, PeftModel):
            raise ModelError(f"{self.base_name} has no adapter; name a run or an adapter's folder")
        return self.model

    @property
    def plain_model(self) -> PreTrainedModel:
        """The model, which must have no adapter.

        Raises:
            ModelError: it has one.
        """
        if isinstance(self.model, PeftModel):
            raise ModelError(f"{self.adapter} lies beside the weights of {self.base_name}; merge it first")
        return self.model


def open_target(
    name: str,
    runs_folder: str = "runs",
    device: str = "auto",
    precision: str = "auto",
    base_name: str | None = None,
    as_trained: bool = True,
    allow_pickled: bool = False,
    for_reward: bool = False,
    thinking: str = "auto",
) -> Target:
    """Load a run's result (by name or folder), an adapter folder, or any model that training takes.

    Args:
        base_name: where an adapter's base is now; None takes what the adapter names.
        allow_pickled: take pickled weights where there are no safetensors.
        as_trained: quantize an adapter's base as it was in training; False leaves it in `precision`.
        thinking: on or off asks for reasoning or for none; auto asks as the model was trained.
        for_reward: a reward model is wanted, which is not for answering.

    Raises:
        RunError: a run that has saved nothing yet.
        ModelError: nothing of that name, an adapter whose base cannot be had or is another one, or a reward model that
            is to answer.
    """
    found = find_target(name, runs_folder)
    code, pickled = allowances(found, allow_pickled)
    hardware = detect(device)
    chosen = choose_precision(precision, hardware)
    if found is None or not (found / "adapter_config.json").exists():
        try:
            source = resolve(str(found) if found else name, allow_pickled=pickled)
            tokenizer = load_tokenizer(source, code)
        except ModelError as error:
            if found is not None or "/" in name:
                raise
            raise ModelError(f"{_no_run(name, runs_folder)}, and no model of that name opens: {error}") from error
        config, template = load_config(source, code), resolve_template(tokenizer)
        check_vocabulary(tokenizer, config, template)
        base = load_base(source, tokenizer, template, hardware, chosen, trust_remote_code=code, config=config)
        _say_allowed(base.notes)
        asking = asked_by(thinking, found or Path(source.path))
        return Target(
            model=base.model,
            renderer=Renderer(
                tokenizer=tokenizer, template_text=base.template.text, end_ids=base.stop_ids, asking=asking
            ),
            base_name=source.name,
            adapter=None,
            source=source,
        )
    if "reward" in read_facts(found) and not for_reward:
        raise ModelError(
            f"{found} is a reward model, which scores answers and generates none: fitune score {name} --data FILE"
        )
    base, _ = open_base_of(found, hardware, chosen, base_name, as_trained, pickled, code)
    tokenizer, template, source = base.tokenizer, base.template, base.source
    model = load_adapter(base.model, found)
    stops = stop_ids(tokenizer, base.model.generation_config, template)
    return Target(
        model=model.eval(),
        renderer=Renderer(
            tokenizer=tokenizer, template_text=template.text, end_ids=stops, asking=asked_by(thinking, found)
        ),
        base_name=source.name,
        adapter=found,
        source=source,
    )


def _no_run(name: str, runs_folder: str) -> str:
    """That there is no such run, and which there are."""
    known = sorted(path.parent.name for path in Path(runs_folder).glob("*/manifest.json"))
    listed = f" (runs: {', '.join(known[:8])}{', …' if len(known) > 8 else ''})" if known else ""
    return f'there is no run "{name}" in {runs_folder}{listed}'


def asked_by(thinking: str, folder: Path) -> Asking:
    """How the model is asked: as its folder says, thinking as chosen (auto, on, off)."""
    asking = Asking.read(folder)
    return asking if thinking == "auto" else replace(asking, thinking=thinking == "on")


def open_base_of(
    adapter: Path,
    hardware: Hardware,
    precision: Precision,
    base_name: str | None = None,
    as_trained: bool = True,
    pickled: bool = False,
    code: bool = False,
) -> tuple[LoadedBase, Facts]:
    """The base of an adapter as the adapter needs it (its template, its rows, its quantization), without the adapter.

    Returns:
        The base, and the adapter's facts.
    """
    facts = read_facts(adapter)
    source = base_of(adapter, facts["base"], base_name, pickled)
    tokenizer = load_tokenizer_of(adapter) or load_tokenizer(source, code)
    saved = facts.get("template")
    template = resolve_template(tokenizer)
    if saved:
        template = Template(cast(str, tokenizer.chat_template), saved["origin"], saved["end_of_turn"])
    # The base answers as it did in training, unless its own 16 bits are asked for.
    quantization = QuantizationConfig.from_dict(facts.get("quantization")) if as_trained else NO_QUANTIZATION
    base = load_base(
        source, tokenizer, template, hardware, precision, trust_remote_code=code, quantization=quantization
    )
    _say_allowed(base.notes)
    grow_for(base.model, tokenizer, facts, template)
    return merge_into(base, merged_inside(adapter)), facts


def base_of(adapter: Path, facts: Origin, name: str | None, allow_pickled: bool = False) -> ModelSource:
    """The adapter's base found.

    Raises:
        ModelError: it is not where it was; with the way to say where it is.
    """
    try:
        return resolve(name or str(facts["name"]), None if name else facts["revision"], allow_pickled)
    except ModelError as error:
        if name:
            raise
        at = f" at revision {facts['revision']}" if facts["revision"] else ""
        raise ModelError(
            f"the adapter in {adapter} was trained on {facts['name']}{at}, which cannot be found: {error}. "
            "Restore it, or give its new place with --base (export), or in base.name of the adapter's fitune.json"
        ) from error


def allowances(found: Path | None, allow_pickled: bool) -> tuple[bool, bool]:
    """(foreign code may run, pickled weights may be loaded): what the run's own settings allowed for its base.

    An adapter that lies elsewhere, a stranger's for one, allows nothing.
    """
    if found is None or not (found.parent / SETTINGS).is_file():
        return False, allow_pickled
    model = read_settings(RunFolder(found.parent)).get("model", {})
    return bool(model.get("trust_remote_code")), bool(model.get("allow_pickled")) or allow_pickled


def _say_allowed(notes: tuple[str, ...]) -> None:
    """Say aloud what may be dangerous, each time."""
    for note in notes:
        if note.startswith(("model.trust_remote_code", "model.allow_pickled", "unused weights")):
            warn(note)


def _is_path(name: str, runs: Path) -> bool:
    """Whether a name that is no folder can only have meant one, and not a model on the hub (OWNER/NAME)."""
    parts = Path(name).parts
    holds_runs = len(parts) == 2 and (Path(parts[0]) == runs or any(Path(parts[0]).glob(f"*/{MANIFEST}")))
    return len(parts) > 2 or name.startswith(("/", ".", "~")) or holds_runs


def find_target(name: str, runs_folder: str) -> Path | None:
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
    known = sorted(entry.name for entry in runs.iterdir() if entry.is_dir()) if runs.is_dir() else []
    if not Path(name).expanduser().exists() and _is_path(name, runs):
        folder = Path(name).expanduser().parent
        there = sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) if folder.is_dir() else []
        hint, listed = did_you_mean(Path(name).name, there), ", ".join(there[:20]) or "nothing"
        raise ModelError(f'there is no run or model "{name}"{hint}; {folder} holds {listed}')
    if hint := did_you_mean(name, known):
        try:
            resolve(name)
        except ModelError as error:
            raise ModelError(f'there is no run or model "{name}"{hint}') from error
    return None
