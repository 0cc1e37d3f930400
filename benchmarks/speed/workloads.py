"""The six workloads of the speed benchmark, as token rows of the built-in model's own tokenizer.

a  Pig Latin: short rows under the template's system prompt
b  instructions of mixed length, about 50 to 1,000 tokens
c  eight few-shot examples before every question
d  plain language modelling: full rows of 512 tokens that begin differently, every token trained
e  conversations of four turns, loss on every assistant turn
f  preference pairs: two answers to each prompt, in the same step
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

from fitune.data.examples import Example
from fitune.data.render.renderer import Renderer
from fitune.data.token_rows import TokenRow
from fitune.demo.pig_latin import to_pig_latin
from fitune.demo.sentences import make_sentences, whole_words
from fitune.models.source import resolve
from fitune.models.template import resolve_template
from fitune.models.tokenizer import load_tokenizer, stop_ids

MODEL = "smollm2-135m-instruct"
# Rows of an optimizer step.
BATCH = {"a": 8, "b": 4, "c": 8, "d": 4, "e": 8, "f": 8}


def chat(*turns: str) -> Example:
    """User and assistant in turn."""
    messages = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return Example(tuple(messages), None, 0)


def examples_of(workload: str, steps: int, tokenizer: Any, seed: int = 0) -> list[Example]:
    """The texts of all steps, in their order."""
    sentences = iter(make_sentences(whole_words(tokenizer), 60 * steps * BATCH[workload] + 20, seed))
    generator = random.Random(seed)

    def say(count: int) -> str:
        return " ".join(next(sentences) for _ in range(count))

    makers: dict[str, Callable[[], Iterator[Example]]] = {
        "a": lambda: _pig_latin(say),
        "b": lambda: _instructions(say, generator),
        "c": lambda: _few_shot(say),
        "d": lambda: _plain(say),
        "e": lambda: _conversations(say),
        "f": lambda: _pairs(say),
    }
    maker = makers[workload]()
    return [next(maker) for _ in range(steps * BATCH[workload])]


def rows_of(workload: str, steps: int, seed: int = 0) -> tuple[list[list[TokenRow]], Any]:
    """Rows of each step, and the tokenizer."""
    source = resolve(MODEL)
    tokenizer = load_tokenizer(source)
    template = resolve_template(tokenizer)
    renderer = Renderer(tokenizer, template.text, stop_ids(tokenizer, None, template))
    loss_on = {"d": "all", "e": "assistant"}.get(workload, "completion")
    examples = examples_of(workload, steps, tokenizer, seed)
    rows = list(renderer.tokenize([renderer.render(example, loss_on) for example in examples]))
    if workload == "d":
        rows = [TokenRow(row.input_ids[:512], row.trained[:512], 0) for row in rows]
    rows = [TokenRow(row.input_ids, row.trained, number) for number, row in enumerate(rows)]
    size = BATCH[workload]
    return [rows[start : start + size] for start in range(0, len(rows), size)], tokenizer


def _pig_latin(say: Callable[[int], str]) -> Iterator[Example]:
    while True:
        sentence = say(1)
        yield chat(sentence, to_pig_latin(sentence))


def _instructions(say: Callable[[int], str], generator: random.Random) -> Iterator[Example]:
    while True:
        longest = round(2 ** generator.uniform(0, 5.9))  # 1 to 60 sentences, short answers as common as long ones
        yield chat(say(1 + longest // 12), say(max(1, longest - longest // 12)))


def _few_shot(say: Callable[[int], str]) -> Iterator[Example]:
    shots = [say(1) for _ in range(8)]
    shown = "\n".join(f"English: {shot}\nPig Latin: {to_pig_latin(shot)}" for shot in shots)
    while True:
        sentence = say(1)
        yield chat(f"{shown}\nEnglish: {sentence}\nPig Latin:", to_pig_latin(sentence))


def _plain(say: Callable[[int], str]) -> Iterator[Example]:
    while True:
        yield Example(None, say(55), 0)


def _conversations(say: Callable[[int], str]) -> Iterator[Example]:
    while True:
        yield chat(*[say(1 + turn % 2 * 2) for turn in range(8)])


def _pairs(say: Callable[[int], str]) -> Iterator[Example]:
    while True:
        prompt = say(6)
        yield chat(prompt, say(3))
        yield chat(prompt, say(3))
