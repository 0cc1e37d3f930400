"""`fitune train`: settings → a run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from fitune.cli.options.flags import SettingsCommand, without_option
from fitune.distributed import ranks

if TYPE_CHECKING:
    from fitune.config.sections import Settings
    from fitune.config.stages import Chain
    from fitune.runs.run_result import RunResult


@click.command(cls=SettingsCommand, options_metavar="[OPTIONS] [--SECTION.SETTING VALUE]...")
@click.argument("recipe", required=False, metavar="[RECIPE.yaml]")
@click.option("--resume", metavar="RUN", help="Resume an interrupted run, given by name or folder.")
@click.option(
    "--gpus", metavar="N|all", help="Train on so many GPUs of this machine, one process each (docs/scale.md)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_context
def train(ctx: click.Context, recipe: str | None, resume: str | None, gpus: str | None, as_json: bool) -> None:
    """Fine-tune a model.

    \b
    fitune train --model.name smollm2-135m-instruct --data.train my.jsonl
    fitune train recipes/pig-latin.yaml --lora.rank 32 --train.learning_rate 1e-3
    fitune train recipes/pig-latin-chain.yaml
    fitune train --resume runs/NAME
    fitune train recipes/pig-latin.yaml --gpus 2

    A recipe holds the differences from the defaults; flags override the recipe. Write lists as a,b, mappings as
    prompt=question,completion=answer and no value as null. A recipe with `stages:` is a chain of runs, each starting from
    the previous one; when resumed, it continues at the first unfinished stage.
    """
    overrides = ctx.meta["settings"]
    from fitune.config.stages import Chain, load_recipe

    if resume is not None and (begun := _begun_chain(resume, overrides)) is not None:
        if recipe is not None or overrides.keys() - {"run.folder"}:
            raise click.UsageError("a chain is resumed with its own settings; leave out the recipe and the flags")
        _on_ranks(ctx, gpus, begun.stages[0].settings)
        _end(ctx, _run_chain(begun, resume=True), as_json)
    if resume is None and recipe is not None:
        settings = load_recipe(recipe, overrides)
    elif resume is None or recipe is not None or overrides:
        from fitune.config.settings_loader import load_settings

        settings = load_settings(recipe or _own_settings(resume, overrides), overrides)
    else:
        settings = None
    if gpus is not None:
        _on_ranks(
            ctx, gpus, settings.stages[0].settings if isinstance(settings, Chain) else settings or _settings_of(resume)
        )
    if isinstance(settings, Chain):
        _end(ctx, _run_chain(settings), as_json)
    if settings is not None and resume is None:
        _refuse_without_data(settings)
    try:
        from fitune.training.run import train as run

        result = run(settings, resume=resume or False)
    except KeyboardInterrupt:  # the run has said how it is resumed
        ctx.exit(130)
    _show(result, as_json)
    ctx.exit(result.exit_code)


def _refuse_without_data(settings: Settings) -> None:
    """Raise, before torch is imported, when no data is named or its file is not there."""
    from fitune.data.read.sources import refuse_missing
    from fitune.errors import SettingsError

    if "train" not in settings.data.model_fields_set:
        raise SettingsError(
            ["no training data is named: give it with --data.train FILE (`fitune data check FILE` looks at it first), "
             "or try fitune without any: `fitune demo`"]
        )  # fmt: skip
    for name in filter(None, (settings.data.train, settings.data.eval)):
        refuse_missing(name)


def _show(result: RunResult, as_json: bool) -> None:
    """The result as JSON, or the last words of a finished run."""
    from fitune.console import json_text, log
    from fitune.runs.end_of_run import last_words

    if not ranks.is_first():
        return
    if as_json:
        click.echo(json_text(_plain(result)))
    elif result.status == "finished":
        log("\n".join(["", *last_words(result.folder)]))


def _settings_of(resume: str | None) -> Settings:
    """The settings of a run that is resumed as it was."""
    from fitune.config.settings_loader import load_settings

    return load_settings(_own_settings(resume, {}), {})


def _on_ranks(ctx: click.Context, gpus: str | None, settings: Settings) -> None:
    """This command again in several processes; returns where one is enough, and in those processes."""
    from fitune.distributed.torchrun import count_of, launch

    if gpus is None or ranks.size() > 1:
        return
    count = count_of(gpus, settings.model.device == "cpu")
    if count > 1:
        status, fault = launch(count, ["train", *without_option(ctx.meta["words"], "--gpus")])
        if fault is not None:
            click.echo(f"error: {fault}", err=True)
        ctx.exit(status)


def _end(ctx: click.Context, results: list[RunResult], as_json: bool) -> NoReturn:
    """Print the results of a chain's runs, where that was asked for, and end with the highest exit code."""
    from fitune.console import json_text

    if as_json and ranks.is_first():
        click.echo(json_text([_plain(result) for result in results]))
    elif results:
        _show(results[-1], as_json)
    ctx.exit(max((result.exit_code for result in results), default=0))


def _plain(result: RunResult) -> dict[str, object]:
    return {**asdict(result), "folder": str(result.folder)}


def _begun_chain(resume: str, overrides: dict[str, str]) -> Chain | None:
    """The chain that was begun under that name or in that folder; None when the word names a single run."""
    root = Path(overrides.get("run.folder", "runs"))
    begun = next((path for path in (Path(resume), root / resume) if (path / "chain.json").is_file()), None)
    if begun is None:
        return None
    from fitune.training.pipeline import saved_chain

    return saved_chain(begun)


def _run_chain(chain: Chain, resume: bool = False) -> list[RunResult]:
    from fitune.training.pipeline import train_chain

    return train_chain(chain, resume)


def _own_settings(resume: str | None, overrides: dict[str, str]) -> Path | None:
    """The file of a resumed run's own settings, over which flags are laid; None for a new run."""
    if resume is None:
        return None
    from fitune.runs.compare import find_run
    from fitune.runs.run_folder import RunFolder

    return RunFolder(find_run(resume, overrides.get("run.folder", "runs"))).settings
