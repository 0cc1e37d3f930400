"""`fitune generate`: one answer, a file of them, or the next-token view."""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from typing import Any

import click


@click.command()
@click.argument("target")
@click.argument("prompt", required=False)
@click.option("--file", "file", type=click.Path(), help="Answer each line of a .txt file, or each row of a data file.")
@click.option("--raw", is_flag=True, help="Continue the text as it stands, without the chat template.")
@click.option("--top", type=click.IntRange(1), help="Show the N likeliest next tokens at each step.")
@click.option("--steps", default=8, show_default=True, help="With --top: steps to follow the likeliest token.")
@click.option("--system", default=None, help="System prompt.")
@click.option("--base", is_flag=True, help="Answer with the base model, the adapter switched off.")
@click.option("--max-new-tokens", default=256, show_default=True, help="Longest answer in tokens.")
@click.option("--temperature", default=0.0, show_default=True, help="0 takes the likeliest token at each step.")
@click.option("--top-p", default=1.0, show_default=True, help="Sample among the likeliest tokens of this share.")
@click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda", "mps"]))
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
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
    device: str,
    as_json: bool,
) -> None:
    """Answer PROMPT with TARGET (a run, an adapter folder or a model); without PROMPT, each line of standard input.

    \b
    fitune generate demo "The birch canoe slid on the smooth planks." --system "Translate to Pig Latin."
    fitune generate smollm2-135m-instruct "The capital of Argentina is" --raw --top 5
    """
    from fitune.evaluate.generate import Sampling, check_fits, complete
    from fitune.evaluate.target import open_target

    prompts = _prompts(prompt, file)
    opened = open_target(target, device=device)
    side = opened.without_adapter() if base else nullcontext()
    ids = [_ids(opened.renderer, text, system, raw) for text in prompts]
    with side:
        if top:
            views = [_view(opened, prompt_ids, top, steps) for prompt_ids in ids]
            _print_views(prompts, views, as_json)
            return
        for prompt_ids in ids:
            check_fits(opened.model, prompt_ids, max_new_tokens)
        answers = complete(opened.model, opened.renderer, ids, Sampling(max_new_tokens, temperature, top_p))
    if as_json:
        pairs = zip(prompts, answers, strict=True)
        click.echo(json.dumps([{"prompt": text, "answer": said} for text, said in pairs], ensure_ascii=False, indent=2))
    else:
        for said in answers:
            click.echo(said)


def _prompts(prompt: str | None, file: str | None) -> list[str]:
    """The prompt, the rows of the file, or the lines of standard input."""
    if prompt is not None and file:
        raise click.UsageError("give a prompt or --file, not both")
    if file:
        from fitune.data.files import read_rows
        from fitune.errors import DataError

        rows = read_rows(file)
        column = next((name for name in ("prompt", "text", "instruction", "question") if name in rows.columns), None)
        if column is None:
            raise DataError(f"{file} has the columns {', '.join(rows.columns)}; one named prompt or text is needed")
        return [str(row[column]) for row in rows.rows if row.get(column)]
    if prompt is not None:
        return [prompt]
    if sys.stdin.isatty():
        raise click.UsageError("give a prompt, --file, or lines on standard input")
    lines = [line.strip() for line in sys.stdin if line.strip()]
    if not lines:
        raise click.UsageError("standard input is empty; give a prompt")
    return lines


def _ids(renderer: Any, text: str, system: str | None, raw: bool) -> list[int]:
    if raw:
        return renderer.text_ids(text)
    messages = [{"role": "system", "content": system}] if system else []
    return renderer.prompt_ids([*messages, {"role": "user", "content": text}])


def _view(opened: Any, ids: list[int], top: int, steps: int) -> list[Any]:
    from fitune.evaluate.next_tokens import next_tokens

    return list(next_tokens(opened.model, opened.renderer, ids, top, steps))


def _print_views(prompts: list[str], views: list[list[Any]], as_json: bool) -> None:
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
        click.echo(json.dumps(data, ensure_ascii=False, indent=2))
        return
    from rich.table import Table
    from rich.text import Text

    from fitune.console import results
    from fitune.data.show import visible

    for text, view in zip(prompts, views, strict=True):
        table = Table("step", *(f"{rank}." for rank in range(1, len(view[0].tokens) + 1)), title=Text(text))
        for number, step in enumerate(view, start=1):
            cells = [
                Text(f"{visible(token)} {share:.1%}")
                for token, share in zip(step.tokens, step.probabilities, strict=True)
            ]
            table.add_row(str(number), *cells)
        results().print(table)
