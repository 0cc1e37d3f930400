"""`fitune data generate` and `fitune data judge`: rows from a larger model, and rows judged by one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from fitune.cli.options.shared import JSON, print_json
from fitune.teacher.row_tasks import RUBRIC, TASKS, Asker

if TYPE_CHECKING:
    from fitune.teacher.row_tasks import Source
    from fitune.teacher.teacher import Budget, Teacher

Command = TypeVar("Command", bound=Callable[..., object])
OPTIONS = (
    click.option("--server", required=True, metavar="URL", help="An OpenAI-compatible address, http://127.0.0.1:8000/v1."),
    click.option("--model", help="The model to ask.  [default: the only one that the address lists]"),
    click.option("--out", type=click.Path(path_type=Path), required=True, help="The .jsonl file to write."),
    click.option("--concurrency", default=4, show_default=True, type=click.IntRange(1, 256), help="Questions at once."),
    click.option("--max-new-tokens", default=512, show_default=True, type=click.IntRange(1), help="Limit of an answer."),
    click.option("--max-tokens", type=click.IntRange(1), help="Budget: tokens read and written by the teacher, in all."),
    click.option("--max-cost", type=click.FloatRange(0, min_open=True), help="Budget in the currency of the prices."),
    click.option("--price-in", default=0.0, type=click.FloatRange(0), help="Price of a million tokens read."),
    click.option("--price-out", default=0.0, type=click.FloatRange(0), help="Price of a million tokens written."),
    click.option("--prompts", type=click.Path(path_type=Path), help="A folder with prompts of your own, see --write-prompts."),
    click.option("--retries", default=8, show_default=True, type=click.IntRange(0), help="Tries after a fault that passes."),
    click.option("--seed", default=0, show_default=True, type=int, help="Other answers with another seed."),
)  # fmt: skip


def _teacher_options(command: Command) -> Command:
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def _write_prompts(ctx: click.Context, _: click.Parameter, folder: str | None) -> None:
    from fitune.console import log
    from fitune.teacher.prompt_files import write_prompts

    if folder is not None:
        written = write_prompts(Path(folder))
        log("\n".join(map(str, written)) or f"every prompt is in {folder} already")
        ctx.exit()


@click.command("generate")
@click.argument("task", type=click.Choice(list(TASKS)))
@click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path),
    required=True,
    help="Seeds or prompts (any data file), or documents.",
)
@click.option("--rows", default=100, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--test", type=click.Path(path_type=Path), help="A test set: no row may have a prompt like one of its.")
@click.option(
    "--temperature", default=1.0, show_default=True, type=click.FloatRange(0), help="Of the teacher's answers."
)
@click.option("--system", help="A system prompt for the teacher.")
@click.option("--num-answers", default=3, show_default=True, type=click.IntRange(2), help="pairs: answers to a prompt.")
@click.option("--rubric", help="pairs: what the teacher judges by.")
@click.option(
    "--write-prompts", type=click.Path(), expose_value=False, is_eager=True, callback=_write_prompts,
    help="Copy what the teacher is asked into a folder, to be changed, and leave.",
)  # fmt: skip
@_teacher_options
@JSON
def generate_rows(
    task: str, source: Path, rows: int, test: Path | None, temperature: float, system: str | None, num_answers: int,
    rubric: str | None, server: str, model: str | None, out: Path, concurrency: int, max_new_tokens: int,
    max_tokens: int | None, max_cost: float | None, price_in: float, price_out: float, prompts: Path | None,
    retries: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Have a larger model write rows.

    \b
    instructions  new requests like the seeds', with answers
    evolve        the seeds' requests made harder, with answers
    questions     questions about documents (text, Markdown, HTML, PDF), answered from them
    answers       an answer to each given prompt
    pairs         the best and the worst of several answers to each prompt

    \b
    fitune serve big-model --port 9000
    fitune data generate instructions --server http://127.0.0.1:9000/v1 --from seeds.jsonl --out rows.jsonl
    fitune data generate questions --server http://127.0.0.1:11434/v1 --model qwen3:30b --from docs/ --out rows.jsonl

    Every answer is kept beside the rows (OUT.journal.jsonl) before it is used: a run that ends goes on where it was with the
    same command, and pays for nothing twice. The key is read from OPENAI_API_KEY.
    """
    from fitune.console import log, teller
    from fitune.teacher.make_rows import RowMaker
    from fitune.teacher.prompt_files import read_prompts
    from fitune.teacher.teacher import Budget

    chosen = TASKS[task]
    sources = _sources(source, chosen.reads_documents)
    known = [one.prompt for one in sources] if not chosen.once and not chosen.reads_documents else []
    known += [one.prompt for one in _sources(test, False)] if test else []
    budget = Budget(max_tokens, max_cost, price_in, price_out)
    teacher = _connect(server, model, out, budget, retries)
    asker = Asker(
        teacher=teacher, prompts=read_prompts(prompts), temperature=temperature, max_tokens=max_new_tokens, seed=seed,
        system=system, num_answers=num_answers, rubric=rubric or RUBRIC,
    )  # fmt: skip
    maker = RowMaker(task=chosen, asker=asker, sources=sources, known=known, concurrency=concurrency)
    with teller() as tell:
        made = maker.make(rows, out, lambda done, wanted: tell("generating", done, wanted))
    for reason, count in sorted(made.rejected.items(), key=lambda item: -item[1]):
        log(f"rejected {count:,}: {reason}")
    if made.stopped:
        log(f"stopped at {made.rows:,} rows by {made.stopped}")
    if as_json:
        print_json(made.to_dict())
        return
    cost = f", cost {made.cost:.4f}" if price_in or price_out else ""
    log(
        f"{made.rows:,} rows in {out}; {made.asked:,} questions asked, {made.from_journal:,} answers kept from before; "
        f"{made.prompt_tokens:,} tokens read, {made.new_tokens:,} written in all{cost}"
    )


@click.command("judge")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--rubric", help="What to judge by.  [default: right, complete, to the point]")
@click.option("--least", type=click.FloatRange(1, 10), help="Keep rows from this score on.")
@_teacher_options
@JSON
def judge_rows(
    file: Path, rubric: str | None, least: float | None, server: str, model: str | None, out: Path, concurrency: int,
    max_new_tokens: int, max_tokens: int | None, max_cost: float | None, price_in: float, price_out: float,
    prompts: Path | None, retries: int, seed: int, as_json: bool,
) -> None:  # fmt: skip
    """Have a model score each row's answer from 1 to 10 by a rubric.

    \b
    fitune data judge rows.jsonl --server http://127.0.0.1:9000/v1 --least 7 --out good.jsonl

    Writes the rows with `score` and `reason`; --least leaves out those below it. FILE has prompts and completions.
    """
    from fitune.console import log, teller
    from fitune.teacher.judge import judge
    from fitune.teacher.prompt_files import read_prompts
    from fitune.teacher.teacher import Budget

    teacher = _connect(server, model, out, Budget(max_tokens, max_cost, price_in, price_out), retries)
    asker = Asker(
        teacher=teacher, prompts=read_prompts(prompts), max_tokens=max_new_tokens, seed=seed, rubric=rubric or RUBRIC
    )  # fmt: skip
    with teller() as tell:
        judged = judge(asker, file, out, least, concurrency, lambda done, all_: tell("judging", done, all_))
    if as_json:
        print_json(judged.to_dict())
    else:
        log(
            f"{judged.kept:,} of {judged.rows:,} rows in {out}; mean score {judged.mean:.2f}, {judged.unjudged:,} not judged"
        )
        if judged.stopped:
            log(f"stopped by {judged.stopped}")


def _connect(server: str, model: str | None, out: Path, budget: Budget, retries: int) -> Teacher:
    """The teacher with its journal beside the rows."""
    from fitune.errors import ModelError
    from fitune.teacher.teacher import Journal, Teacher, connect, named_models

    client = connect(server, os.environ.get("OPENAI_API_KEY"), retries)
    click.get_current_context().call_on_close(client.close)
    if model is None:
        listed = named_models(client)
        if len(listed) != 1:
            raise ModelError(f"{server} lists {len(listed)} models ({', '.join(listed[:8])}); choose one with --model")
        (model,) = listed
    teacher = Teacher(
        client=client, model=model, journal=Journal.open(out.with_name(f"{out.name}.journal.jsonl")), budget=budget
    )
    teacher.count_journal()
    return teacher


def _sources(path: Path, documents: bool) -> list[Source]:
    """What rows are made from: passages, or the prompts of a data file or of a text file's lines."""
    from fitune.teacher.documents import read_passages
    from fitune.teacher.row_tasks import sources_of
    from fitune.teacher.seeds import read_prompts_of

    return sources_of(read_passages(path)) if documents else read_prompts_of(path)
