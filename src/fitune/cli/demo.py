"""`fitune demo`: a real model learns Pig Latin on a laptop's CPU, and shows its answers before and after."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fitune.answer_metrics import ANSWER_METRICS
from fitune.cli.options.shared import print_json

if TYPE_CHECKING:
    from rich.table import Table

    from fitune.runs.run_folder import RunFolder

# What measured best within the demo's minutes on two cores; docs/tried.md has the others.
RECIPE: dict[str, dict[str, object]] = {
    "data": {"train": "demo:pig-latin", "eval_share": 0.01},
    "lora": {"rank": 32, "alpha": 64},
    "train": {"learning_rate": 2e-3, "batch_size": 8},
    "eval": {"samples": 20, "max_new_tokens": 64},
    "run": {"name": "demo"},
}


@click.command()
@click.option(
    "--also",
    type=click.Path(),
    help="A .txt file of sentences to translate at the end.  [default: 60 Harvard sentences]",
)
@click.option(
    "--also-rows", default=60, show_default=True, type=click.IntRange(0), help="Number of these sentences; 0 takes all."
)
@click.option("--name", default="demo", show_default=True, help="Name of the run; an unfinished one is resumed.")
@click.option("--steps", type=click.IntRange(1), help="Train for this many steps instead of one epoch.")
@click.option("--model", default=None, help="Another model.  [default: smollm2-135m-instruct]")
@click.option("--again", is_flag=True, help="Train again even if a finished run of that name exists.")
@click.option("--svg", type=click.Path(), help="Write the table to an SVG file.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def demo(
    also: str | None,
    also_rows: int,
    name: str,
    steps: int | None,
    model: str | None,
    again: bool,
    svg: str | None,
    as_json: bool,
) -> None:
    """Fine-tune the built-in model on English → Pig Latin, and show before and after.

    \b
    fitune demo
    fitune demo --also my_sentences.txt

    SmolLM2-135M-Instruct learns the rule from generated sentences (LoRA, about ten minutes on two cores) and is then
    tested on sentences that it has never seen. Ctrl-C keeps the progress; the same command resumes.
    """
    from fitune.console import log

    sentences = _sentences(also)  # a fault in the file is told before minutes of training
    folder = _train(name, steps, model, again)
    if folder is None:
        raise SystemExit(130)
    log("translating the sentences, without and with the adapter …")
    tables = {"held-out sentences": _held_out(folder), **_also(folder, also, sentences, also_rows)}
    _report(tables, as_json, svg)
    log(f"chat with it:  fitune chat {name} --system 'Translate to Pig Latin.'")
    log(f"the report:  {folder / 'report.html'}")


def _train(name: str, steps: int | None, model: str | None, again: bool) -> Path | None:
    """The finished run's folder, trained now if need be; None after Ctrl-C."""
    import shutil

    from fitune.config.sections import Settings
    from fitune.console import log
    from fitune.runs.run_folder import RunFolder
    from fitune.training.resume import check_same_settings
    from fitune.training.run import train

    values: dict[str, dict[str, object]] = {section: dict(fields) for section, fields in RECIPE.items()}
    values["run"]["name"] = name
    if steps:
        values["train"]["max_steps"] = steps
    if model:
        values["model"] = {"name": model}
    settings = Settings.model_validate(values)
    run = RunFolder(Path(settings.run.folder) / name)
    status = _status(run)
    if status is not None and again:
        with run.locked():  # not under the hands of a process that writes it
            shutil.rmtree(run.path)
        status = None
    if status is not None and (steps or model):
        check_same_settings(run, settings.model_dump(mode="json"))
    if status == "finished":
        log(f"{run.path} is finished; --again trains it again")
        return run.path
    result = train(resume=run.path) if status is not None else train(settings)
    return result.folder if result.status == "finished" else None


def _status(run: RunFolder) -> str | None:
    """What became of the demo's run of that name, or None when there is none.

    Raises:
        RunError: the name is that of another run, which the demo neither goes on with nor deletes.
    """
    from fitune.demo.tasks import is_demo
    from fitune.errors import RunError
    from fitune.runs.manifest import read

    if not run.manifest.exists():
        return None
    manifest = read(run.manifest)
    data = manifest.get("data", {}).get("train", "")
    if not is_demo(data):
        raise RunError(f"{run.path} is no run of the demo: it trains on {data}; choose another --name")
    return manifest.get("status")


def _sentences(path: str | None) -> list[str]:
    """The sentences to translate at the end, each once; without a path the Harvard sentences.

    Raises:
        DataError: no such file, or none of sentences.
    """
    from importlib.resources import files

    from fitune.data.demo_files import read_sentences

    return list(dict.fromkeys(read_sentences(path or str(files("fitune.data") / "harvard_sentences.txt"))))


def _held_out(folder: Path) -> list[dict[str, str]]:
    """asked, before, after, wanted of the run's own held-out rows."""
    from fitune.runs.run_folder import read_samples

    samples = read_samples(folder / "samples.jsonl")
    before = {row["row"]: row for row in samples if row["moment"] == "before"}
    return [
        {
            "asked": row["asked"],
            "before": before[row["row"]]["answer"] if row["row"] in before else "",
            "after": row["answer"],
            "wanted": row["wanted"],
        }
        for row in samples
        if row["moment"] == "after"
    ]


def _also(folder: Path, path: str | None, sentences: list[str], count: int) -> dict[str, list[dict[str, str]]]:
    """The same of a file of sentences, those that were trained on left out (the generator could have made one)."""
    import random

    from fitune.config.sections import Settings
    from fitune.data.read.forms.cells import say
    from fitune.data.read.sources import demo_rows
    from fitune.demo.pig_latin import to_pig_latin
    from fitune.demo.tasks import SYSTEM
    from fitune.evaluation.generation import answer
    from fitune.evaluation.inference_model import open_target
    from fitune.runs.compare import read_settings
    from fitune.runs.run_folder import RunFolder

    name = Path(path).name if path else "Harvard sentences"
    settings = Settings.model_validate(read_settings(RunFolder(folder)))
    target = open_target(str(folder))
    rows = demo_rows(settings.data.train, target.renderer.tokenizer, settings.train.seed).rows
    trained = {row["prompt"] for row in rows}
    fresh = [sentence for sentence in sentences if sentence not in trained]
    if count:
        fresh = random.Random(0).sample(fresh, min(count, len(fresh)))
    asked = [[say("system", SYSTEM), say("user", sentence)] for sentence in fresh]
    after = answer(target.model, target.renderer, asked, max_new_tokens=64, batch=20)
    with target.without_adapter():
        before = answer(target.model, target.renderer, asked, max_new_tokens=64, batch=20)
    table = [
        {"asked": sentence, "before": first, "after": then, "wanted": to_pig_latin(sentence)}
        for sentence, first, then in zip(fresh, before, after, strict=True)
    ]
    return {name: table}


def _report(tables: dict[str, list[dict[str, str]]], as_json: bool, svg: str | None) -> None:
    """Tables sentence by sentence, and the scores before and after."""
    from fitune.answer_metrics import score

    scores = {
        name: {
            side: score([row[side] for row in rows], [row["wanted"] for row in rows]) for side in ("before", "after")
        }
        for name, rows in tables.items()
    }
    if as_json:
        data = {name: {"rows": len(rows), **scores[name], "sentences": rows} for name, rows in tables.items()}
        print_json(data)
        return
    from fitune.console import stdout_console

    for name, rows in tables.items():
        stdout_console().print(sentence_table(name, rows))
    stdout_console().print(score_table(tables, scores))
    if svg:
        from rich.console import Console

        console = Console(record=True, width=150, file=io.StringIO())
        name, rows = list(tables.items())[-1]
        console.print(sentence_table(name, rows[:6]))
        console.print(score_table(tables, scores))
        console.save_svg(svg, title="fitune demo")


def sentence_table(name: str, rows: list[dict[str, str]]) -> Table:
    """prompt, before, after, reference; the words that are right are green."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=name, show_lines=True)
    for column in ("prompt", "before", "after", "reference"):
        table.add_column(column, ratio=1)
    for row in rows:
        wanted = row["wanted"].split()
        after = Text(" ").join(
            Text(word, style="green" if place < len(wanted) and wanted[place] == word else "red")
            for place, word in enumerate(row["after"].split())
        )
        before = row["before"] if len(row["before"]) <= 160 else row["before"][:157] + "…"
        table.add_row(Text(row["asked"]), Text(before), after, Text(row["wanted"], style="cyan"))
    return table


def score_table(tables: dict[str, list[dict[str, str]]], scores: dict[str, dict[str, dict[str, float]]]) -> Table:
    """Exact match, words right and chrF, before → after."""
    from rich.table import Table

    table = Table("", "sentences", "exact match", "word accuracy", "chrF", title="before → after")
    for name, sides in scores.items():
        cells = [f"{sides['before'][metric]:.1%} → {sides['after'][metric]:.1%}" for metric in ANSWER_METRICS]
        table.add_row(name, str(len(tables[name])), *cells)
    return table
