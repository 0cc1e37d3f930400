"""`fitune generate`: one answer, a file of them, or the next-token view."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

import click

from fitune.cli.options.shared import DEVICE, FOLDER, JSON, SEED, TEMPERATURE, THINKING, TOP_P, print_json

if TYPE_CHECKING:
    from fitune.data.examples import Message
    from fitune.data.render.renderer import Renderer
    from fitune.evaluation.inference_model import Target
    from fitune.evaluation.next_tokens import Step


@click.command()
@click.argument("target")
@click.argument("prompt", required=False)
@click.option("--file", "file", type=click.Path(), help="Answer each line of a .txt file, or each row of a data file.")
@click.option("--raw", is_flag=True, help="Continue the text as it is, without the chat template.")
@click.option("--top", type=click.IntRange(1), help="Show the N most likely next tokens at each step.")
@click.option(
    "--steps",
    default=8,
    show_default=True,
    type=click.IntRange(1),
    help="With --top: number of steps along the most likely token.",
)
@click.option("--system", default=None, help='System prompt; "" for none.  [default: that of the training rows]')
@click.option("--base", is_flag=True, help="Answer with the base model, with the adapter switched off.")
@click.option(
    "--max-new-tokens", default=256, show_default=True, type=click.IntRange(1), help="Maximum answer length in tokens."
)
@TEMPERATURE
@TOP_P
@THINKING
@SEED
@FOLDER
@DEVICE
@JSON
def generate(
    target: str,
    prompt: str | None,
    file: str | None,
    raw: bool,
    top: int | None,
    steps: int,
    system: str | None,
    base: bool,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    thinking: str,
    seed: int | None,
    folder: str,
    device: str,
    as_json: bool,
) -> None:
    """Answer PROMPT with TARGET (a run, an adapter folder or a model); without PROMPT, each line of standard input.

    \b
    fitune generate demo "The birch canoe slid on the smooth planks." --system "Translate to Pig Latin."
    fitune generate smollm2-135m-instruct "The capital of Argentina is" --raw --top 5
    """
    from fitune.console import log, printable
    from fitune.evaluation.generation import Sampling, check_fits, complete, fix_seed
    from fitune.evaluation.inference_model import open_target

    asked = _asked(prompt, file)
    prompts = [messages[-1]["content"] for messages in asked]
    fix_seed(seed)
    opened = open_target(target, folder, device, thinking=thinking)
    if system is None and not raw:
        system = opened.renderer.asking.system
    asked = [with_system(messages, system) for messages in asked]
    side = opened.without_adapter() if base else nullcontext()
    ids = [_ids(opened.renderer, messages, raw) for messages in asked]
    with side:
        if top:
            views = [_view(opened, prompt_ids, top, steps) for prompt_ids in ids]
            _print_views(prompts, views, as_json)
            return
        for prompt_ids in ids:
            check_fits(opened.model, prompt_ids, max_new_tokens)
        sampling = Sampling(max_new_tokens, temperature, top_p)
        answers = complete(opened.model, opened.renderer, ids, sampling, label="answering, prompt")
    if as_json:
        rows = [
            {"prompt": text, "answer": answer.text, "stopped": answer.stopped}
            | ({"reasoning": answer.reasoning} if answer.reasoning else {})
            for text, answer in zip(prompts, answers, strict=True)
        ]
        print_json(rows)
        return
    for answer in answers:
        click.echo(printable(answer.text))
    if cut := sum(not answer.stopped for answer in answers):
        log(f"{cut:,} of {len(answers):,} answers were truncated at {max_new_tokens:,} tokens; raise --max-new-tokens")


def _asked(prompt: str | None, file: str | None) -> list[list[Message]]:
    """Conversations that end with a question: the prompt, the rows of the file, or the lines of standard input."""
    if prompt is not None and file:
        raise click.UsageError("give a prompt or --file, not both")
    if file:
        from fitune.data.read.files import read_rows
        from fitune.evaluation.prompt_file import questions

        return questions(read_rows(file), None)
    if prompt is not None:
        return [[{"role": "user", "content": prompt}]]
    if sys.stdin.isatty():
        raise click.UsageError("give a prompt, --file, or lines on standard input")
    lines = [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise click.UsageError("standard input is empty; give a prompt")
    return [[{"role": "user", "content": line}] for line in lines]


def with_system(messages: list[Message], system: str | None) -> list[Message]:
    """The conversation under a system prompt, unless it has one."""
    if not system or messages[0]["role"] == "system":
        return messages
    return [{"role": "system", "content": system}, *messages]


def _ids(renderer: Renderer, messages: list[Message], raw: bool) -> list[int]:
    """Tokens to go on from: the question in the chat template, or its text alone."""
    return renderer.text_ids(messages[-1]["content"]) if raw else renderer.prompt_ids(messages)


def _view(opened: Target, ids: list[int], top: int, steps: int) -> list[Step]:
    from fitune.evaluation.next_tokens import next_tokens

    return list(next_tokens(opened.model, opened.renderer, ids, top, steps))


def _print_views(prompts: list[str], views: list[list[Step]], as_json: bool) -> None:
    """A table a prompt: a line a step, the likeliest token first."""
    if as_json:
        data = [
            {
                "prompt": text,
                "steps": [
                    [
                        {"token": token, "id": number, "probability": share}
                        for token, number, share in zip(step.tokens, step.ids, step.probabilities, strict=True)
                    ]
                    for step in view
                ],
            }
            for text, view in zip(prompts, views, strict=True)
        ]
        print_json(data)
        return
    from rich.table import Table
    from rich.text import Text

    from fitune.console import stdout_console
    from fitune.data.render.show import visible

    for text, view in zip(prompts, views, strict=True):
        table = Table("step", *(f"{rank}." for rank in range(1, len(view[0].tokens) + 1)), title=Text(text))
        for number, step in enumerate(view, start=1):
            cells = [
                Text(f"{visible(token)} {share:.1%}")
                for token, share in zip(step.tokens, step.probabilities, strict=True)
            ]
            table.add_row(str(number), *cells)
        stdout_console().print(table)
