"""Everything that can be known before a weight is loaded: hardware, model files, tokenizer, template, rows.

Every fault of the data is found here, in seconds, not after minutes of loading. `fitune data check` uses a part of it: what
that does not need (peft, the plan, model classes) is imported where a run needs it.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fitune.adapters.locate import digest, find_adapter, merged_facts, merged_inside
from fitune.config.sections import DataSettings, Settings
from fitune.console import log, warn
from fitune.data.examples import questions_of
from fitune.data.prepare import prepare
from fitune.data.read.sources import PreparedData
from fitune.data.render.asking import Asking
from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import PromptRow
from fitune.distributed import ranks, together
from fitune.errors import DataError, RunError, SettingsError
from fitune.exporting.convertible import refuse_unconvertible
from fitune.exporting.forms.export_form import Exportable
from fitune.methods.registry import METHODS
from fitune.methods.rl_config import RlSettings
from fitune.models.families.family_sheet import family_note
from fitune.models.load_config import load_config
from fitune.models.source import ModelSource, resolve
from fitune.models.template import Template, resolve_template
from fitune.models.tokenizer import check_vocabulary, load_tokenizer, stop_ids
from fitune.rewards.mix import check_names
from fitune.runs import manifest as manifests
from fitune.runs.compare import flat
from fitune.runs.manifest import folder_fingerprint
from fitune.training.plan_scenario import sampled_by

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from fitune.models.hardware import Precision
    from fitune.training.run_setup import RunSetup


def prepare_run(settings: Settings, exclude: Sequence[str] = (), fit: bool = True, date: str | None = None) -> RunSetup:
    """Find the model, read and check the data, fit the settings to the memory: what is returned will be trained.

    Args:
        exclude: sentences that the demo task must not make.
        fit: False for a resumed run, whose settings were fitted when it began.
        date: the day that the chat template writes, for a resumed run; None for today.

    Raises:
        ModelError, DataError, SettingsError: with the place, the value and the fix.
        DoesNotFit: nothing that the user left open fits the memory.
    """
    from fitune.training.autofit import autofit_run

    own = settings.own
    if isinstance(own, RlSettings):
        check_names(own.rewards)
    setup = _find(settings, exclude, date)
    if not fit:
        return setup
    fitted = autofit_run(settings, setup)
    if fitted.settings.data != settings.data:  # the ladder left the longest rows out
        data = read_data(fitted.settings, setup.config, setup.renderer, exclude)
        setup = replace(setup, data=data)
    return replace(setup, settings=fitted.settings, fit_facts=fitted.facts)


def prepare_on_ranks(settings: Settings, exclude: Sequence[str], fit: bool, date: str | None) -> RunSetup:
    """`prepare_run` on rank 0, which reads and tokenizes the data and fits the settings; then on the others, which find
    the tokens in the cache.

    Raises:
        FituneError: as `prepare_run`; or a rank has other packages, settings, data or another model than rank 0.
    """
    if ranks.size() == 1:
        return prepare_run(settings, exclude, fit, date)
    packages = {name: version for name, version in manifests.versions().items() if name != "system"}
    together.same({**packages, **flat(settings.model_dump(mode="json"))}, "settings are compared")
    made: list[RunSetup] = []

    def first() -> tuple[dict[str, Any], dict[str, object]]:
        made.append(prepare_run(settings, exclude, fit, date))
        return made[0].settings.model_dump(mode="json"), made[0].fit_facts

    seconds = float(settings.trainer.get("ddp_timeout", together.WAIT_SECONDS))
    fitted, facts = together.by_first("rank 0 reads and tokenizes the data (trainer.ddp_timeout)", first, seconds)

    def others() -> RunSetup:
        return made[0] if made else prepare_run(Settings(**fitted), exclude, fit=False, date=date)

    setup = together.everywhere("the data are read", others)
    model = {f"model ({name})": setup.base_facts.get(name) for name in ("fingerprint", "template_hash", "precision")}
    together.same({"data": list(setup.data.hashes.values()), **model}, "data and model are compared")
    return replace(setup, fit_facts=facts)


def seen_by_all(folder: Path) -> None:
    """Raise `RunError` when this rank does not see the folder that rank 0 has made."""
    if not folder.is_dir():
        raise RunError(
            f"{folder.resolve()} was made by rank 0 and is not there for rank {ranks.rank()} on {platform.node()}; set "
            "run.folder to a folder that all machines share"
        )


def _find(settings: Settings, exclude: Sequence[str], date: str | None = None) -> RunSetup:
    """The setup of a run that is trained as it was asked for."""
    from fitune.models.hardware import choose_precision, detect
    from fitune.training.run_setup import RunSetup

    # A name that is not there is told before the data is read.
    start, merges = start_of(settings), merges_of(settings)
    hardware = detect(settings.model.device)
    precision = choose_precision(settings.model.precision, hardware)
    several = f"{ranks.size()} × " if ranks.size() > 1 else ""
    log(f"training on {several}{hardware.device} ({hardware.name}) in {precision.name}: {precision.reason}")
    if hardware.device == "cuda" and ranks.size() == 1 and (idle := torch.cuda.device_count() - 1):
        log(f"{idle} more GPU{'s are' if idle > 1 else ' is'} idle; --gpus all uses them (docs/scale.md)")
    source = resolve(settings.model.name, settings.model.revision, settings.model.allow_pickled)
    config = load_config(source, settings.model.trust_remote_code)
    log(family_note(config.model_type))
    tokenizer = load_tokenizer(source, settings.model.trust_remote_code)
    template = resolve_template(tokenizer, settings.model.chat_template)
    renderer = make_renderer(tokenizer, template, config, settings.data, date)
    if renderer.asking.date:
        log(
            f"the chat template writes the date: it stays {renderer.asking.date} for this run, and in chat with its result"
        )
    exportable = Exportable(
        name=source.name,
        base_name=source.name,
        config=config,
        tokenizer=tokenizer,
        template=template,
        has_adapter=settings.train.tuning == "lora",
        gguf_type=settings.export.gguf_type,
    )
    refuse_unconvertible(settings.export.to, exportable)
    data = read_data(settings, config, renderer, exclude)
    check_best_metric(settings, data)
    found = facts(source, template, precision)
    if renderer.asking.date:
        found["template_date"] = renderer.asking.date
    if start is not None:
        found["continues"] = {"adapter": str(start.resolve()), "sha256": digest(start)}
    if merges:
        found["merged"] = merged_facts(merges)
    return RunSetup(
        settings=settings,
        fit_facts={},
        exclude=tuple(exclude),
        hardware=hardware,
        precision=precision,
        source=source,
        config=config,
        tokenizer=tokenizer,
        template=template,
        renderer=renderer,
        data=data,
        base_facts=found,
    )


def merges_of(settings: Settings) -> list[Path]:
    """Folders of the adapters that are merged into the base first; for a continued adapter, those it was trained over."""
    start = start_of(settings)
    if start is not None:
        return merged_inside(start)
    found: dict[str, Path] = {}
    for name in settings.model.merge:
        adapter = find_adapter(name, settings.run.folder, "model.merge")
        for folder in (*merged_inside(adapter), adapter):  # what it stands on comes first, and once
            found.setdefault(digest(folder), folder)
    return list(found.values())


def start_of(settings: Settings) -> Path | None:
    """The folder of the adapter that the run goes on with; None when it begins a new one."""
    name = settings.lora.continue_from
    return find_adapter(name, settings.run.folder, "lora.continue_from") if name is not None else None


def read_data(settings: Settings, config: PretrainedConfig, renderer: Renderer, exclude: Sequence[str]) -> PreparedData:
    """Rows read, rendered, masked and checked; what is worth knowing about them is said."""
    method, data, asked = METHODS[settings.method], settings.data, settings.data.max_length
    max_length = asked or getattr(config.get_text_config(), "max_position_embeddings", None)
    prepared = prepare(
        data.train,
        data.eval,
        renderer=renderer,
        eval_share=data.eval_share,
        exclude=exclude,
        reads=method.reads,
        form=data.form,
        columns=data.columns,
        system=data.system,
        loss_on=data.loss_on,
        response_template=data.response_template,
        max_length=max_length,
        too_long=data.too_long,
        bad_rows=data.bad_rows,
        hub_split=data.hub_split,
        seed=settings.train.seed,
    )
    if (rl := sampled_by(settings)) is not None:
        context = getattr(config.get_text_config(), "max_position_embeddings", None)
        check_context([*prepared.train, *prepared.eval], rl.max_new_tokens, context)
    for warning in prepared.warnings:
        warn(warning)
    trained = sum(row.num_trained for row in prepared.train)
    tokens = sum(row.num_tokens for row in prepared.train)
    limit = "no limit" if max_length is None else f"{max_length:,} tokens"
    limit_from = "data.max_length" if asked else "the model's context length"
    what = {"pairs": "training pairs", "judged": "training answers", "prompts": "prompts"}.get(
        method.reads, "training rows"
    )
    said = f"{trained:,} of {tokens:,} tokens are trained" if trained else f"{tokens:,} tokens"
    log(
        f"{len(prepared.train):,} {what} and {len(prepared.eval):,} held out; {said}; "
        f"maximum length of a row: {limit}, from {limit_from}"
    )
    return prepared


def check_context(prompts: Sequence[PromptRow], max_new_tokens: int, context: int | None) -> None:
    """Raise `DataError` when a prompt leaves no room for the longest answer in the model's context."""
    over = [row for row in prompts if context and row.num_tokens + max_new_tokens > context]
    if over and context:
        longest = max(over, key=lambda row: row.num_tokens)
        raise DataError(
            f"{len(over):,} prompts leave no room for an answer of rl.max_new_tokens {max_new_tokens:,} in the model's "
            f"context of {context:,} tokens (row {longest.row_number} has {longest.num_tokens:,}); lower "
            f"rl.max_new_tokens, or drop them with data.max_length: {max(context - max_new_tokens, 1)} and "
            "data.too_long: drop"
        )


def check_best_metric(settings: Settings, data: PreparedData) -> None:
    """Raise `SettingsError` when the metric that picks the best checkpoint will never be measured."""
    metric = settings.eval.best_metric
    if metric == "loss":
        return
    if not data.eval:
        fault = f"eval.best_metric is {metric} and no rows are held out; set data.eval or data.eval_share"
        raise SettingsError([fault])
    needs_answers = metric in METHODS[settings.method].answer_metrics
    if needs_answers and not questions_of(data.eval_examples, settings.eval.samples):
        raise SettingsError(
            [
                f"eval.best_metric is {metric}, which needs answers; set eval.samples to 1 or more "
                "and hold out rows that end with an answer, or leave it at loss"
            ]
        )


def make_renderer(
    tokenizer: PreTrainedTokenizerBase,
    template: Template,
    config: PretrainedConfig,
    data: DataSettings,
    date: str | None = None,
) -> Renderer:
    """The one renderer of the run; the tokenizer gains the template's tokens, as `load_base` would add them."""
    check_vocabulary(tokenizer, config, template)
    if template.added_tokens:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(template.added_tokens)}, replace_extra_special_tokens=False
        )
    writes_date = "strftime_now" in template.text
    today = (date or datetime.now().date().isoformat()) if writes_date else None
    asking = Asking(system_as_user=data.system_as_user, date=today, split_special_tokens=data.split_special_tokens)
    return Renderer(
        tokenizer=tokenizer,
        template_text=template.text,
        end_ids=stop_ids(tokenizer, config, template),
        thinking=data.thinking,
        asking=asking,
    )


def facts(source: ModelSource, template: Template, precision: Precision) -> dict[str, object]:
    """What must be the same when the run is resumed."""
    path = Path(source.path) / source.gguf_file if source.gguf_file else Path(source.path)
    return {
        **source.to_dict(),
        "precision": precision.name,
        "template_origin": template.origin,
        "template_hash": hashlib.sha256(template.text.encode()).hexdigest(),
        # A hub model's files lie in the hub's own cache, and its revision names them.
        "fingerprint": folder_fingerprint(path) if path.exists() else None,
    }
