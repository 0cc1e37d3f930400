"""What to ask when copies are compared: rows of the run's own data, a file of the user's, or plain questions."""

from __future__ import annotations

from pathlib import Path

from fitune.console import log
from fitune.data.examples import Message
from fitune.data.read.files import read_rows
from fitune.data.read.sources import DataOptions, example_key, set_aside
from fitune.data.render.renderer import Renderer
from fitune.data.sft import load_examples
from fitune.errors import FituneError
from fitune.evaluation.prompt_file import questions
from fitune.runs.compare import read_settings
from fitune.runs.run_folder import RunFolder

PLAIN = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "List three colours.",
    "Why is the sky blue?",
    "Translate to French: good morning.",
    "What is 12 plus 30?",
    "Name an animal that can fly.",
    "Explain what a library is.",
    "Give a short recipe for tea.",
    "Who wrote Romeo and Juliet?",
    "Finish the sentence: The dog ran",
    "What does 'fast' mean?",
    "Say hello in Spanish.",
    "How many days has a week?",
    "Describe a chair in few words.",
    "What comes after Tuesday?",
    "Is ice warmer than water?",
    "Write a line of a poem about rain.",
    "What do bees make?",
    "Name a river in Egypt.",
)


def choose_prompts(run: RunFolder | None, renderer: Renderer, count: int, file: str | None) -> list[list[Message]]:
    """`count` conversations that end with a question.

    Args:
        run: the run whose data is asked; None for an adapter or model without one.
        file: a .txt file or a data file of the user's, which goes before the run's own.

    Raises:
        DataError: the file cannot be read.
    """
    if file is not None:
        return questions(read_rows(file))[:count]
    if run is not None:
        try:
            if found := _of_run(run, renderer, count):
                return found
        except (FituneError, OSError) as error:
            log(f"no prompts can be taken from the run's data ({error}); general questions are used")
    return [[{"role": "user", "content": text}] for text in PLAIN[:count]]


def _of_run(run: RunFolder, renderer: Renderer, count: int) -> list[list[Message]]:
    """Held-out rows of the run, spread evenly, and training rows where they are too few; empty for plain text."""
    settings = read_settings(run)
    data, seed = settings["data"], settings["train"]["seed"]
    options = DataOptions(
        form=data["form"],
        columns=data["columns"],
        system=data["system"],
        hub_split=data["hub_split"],
        seed=seed,
    )
    # Pairs and prompts without answers are no conversations: then plain questions are asked.
    _, _, examples = load_examples(data["eval"] or data["train"], renderer, options)
    if data["eval"] is None:
        rest, held_out = set_aside(examples, data["eval_share"], seed, example_key)
        examples = held_out if len(held_out) >= count else held_out + rest[: count - len(held_out)]
    asking = [example.messages for example in examples if example.messages]
    found = []
    for messages in asking[:: max(len(asking) // count, 1)][:count]:
        head = list(messages)
        while head and head[-1]["role"] == "assistant":
            head.pop()
        if head:
            found.append(head)
    return found


def run_of(path: Path) -> RunFolder | None:
    """The run whose adapter or model lies in `path`, or None."""
    try:
        return RunFolder.open(path.parent) if path.name in ("adapter", "model") else None
    except FituneError:
        return None
