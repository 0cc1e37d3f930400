"""`fitune.load`, `generate`, `chat` and `evaluate`: a run, an adapter or a model, asked."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from fitune.console import be_quiet_in_a_notebook
from fitune.data.examples import Message
from fitune.runs.run_result import RunResult

if TYPE_CHECKING:
    from fitune.evaluation.evaluate import Evaluation
    from fitune.evaluation.inference_model import Target

Named: TypeAlias = "str | Path | RunResult | Target"


def load(target: Named, *, runs_folder: str = "runs", device: str = "auto", thinking: str = "auto") -> Target:
    """Open a run's result, an adapter folder or a model, to be asked.

    Args:
        target: a run (name, folder, or what `fitune.train` returned), an adapter folder, or a model.
        runs_folder: where runs are looked for by name.
        device: auto, cpu, cuda or mps.
        thinking: on or off asks for reasoning or for none; auto asks as the model was trained.

    Returns:
        The opened model; one that is open already is returned as it is.

    Raises:
        ModelError, RunError: nothing of that name, or a run that has saved nothing yet.
    """
    be_quiet_in_a_notebook()
    from fitune.evaluation.inference_model import Target, open_target

    if isinstance(target, Target):
        return target
    name = str(target.folder) if isinstance(target, RunResult) else str(target)
    return open_target(name, runs_folder, device, thinking=thinking)


def generate(
    target: Named,
    prompts: str | Sequence[str],
    *,
    system: str | None = None,
    base: bool = False,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> str | list[str]:
    """Answer a prompt, or several in one batch.

        fitune.generate("demo", "The birch canoe slid on the smooth planks.")

    Args:
        target: as in `fitune.load`; open it once for several calls.
        prompts: one prompt or a list of them.
        system: system prompt; None takes that of the training rows, "" none.
        base: answer with the base model, with the adapter switched off.
        temperature: 0 is greedy decoding.
        seed: random seed for sampling.

    Returns:
        The answer, or a list of them in the order of the prompts.
    """
    opened = load(target)
    from fitune.evaluation.generation import Sampling, check_fits, complete, fix_seed

    fix_seed(seed)
    asked = [prompts] if isinstance(prompts, str) else list(prompts)
    head = _head(opened, system)
    ids = [opened.renderer.prompt_ids([*head, {"role": "user", "content": text}]) for text in asked]
    for one in ids:
        check_fits(opened.model, one, max_new_tokens)
    sampling = Sampling(max_new_tokens, temperature, top_p)
    with opened.without_adapter() if base else nullcontext():
        answers = [said.text for said in complete(opened.model, opened.renderer, ids, sampling)]
    return answers[0] if isinstance(prompts, str) else answers


def chat(target: Named, *, system: str | None = None) -> Chat:
    """A conversation with a run or a model: call it with a message, it returns the answer and keeps the history.

        talk = fitune.chat("demo")
        talk("The pig eats.")

    Args:
        target: as in `fitune.load`.
        system: system prompt; None takes that of the training rows, "" none.
    """
    opened = load(target)
    return Chat(opened, _head(opened, system))


class Chat:
    """A conversation. Call it with a message; `messages` is the history, `clear()` empties it."""

    def __init__(self, target: Target, head: Sequence[Message] = ()):
        self.target, self.head = target, list(head)
        self.messages: list[Message] = list(head)

    def __call__(self, message: str, *, max_new_tokens: int = 512, temperature: float = 0.0, top_p: float = 1.0) -> str:
        """The answer to a message after all that was said before."""
        from fitune.evaluation.generation import Sampling, check_fits, complete

        asked: list[Message] = [*self.messages, {"role": "user", "content": message}]
        prompt = self.target.renderer.prompt_ids(asked)
        check_fits(self.target.model, prompt, max_new_tokens)
        sampling = Sampling(max_new_tokens, temperature, top_p)
        (said,) = complete(self.target.model, self.target.renderer, [prompt], sampling)
        answer: Message = {"role": "assistant", "content": said.text}
        self.messages = [*asked, {**answer, "reasoning_content": said.reasoning} if said.reasoning else answer]
        return said.text

    def clear(self) -> None:
        """Forget what was said; the system prompt stays."""
        self.messages = list(self.head)

    def __repr__(self) -> str:
        said = "\n".join(f"{one['role']}: {one['content']}" for one in self.messages)
        return said or f"an empty conversation with {self.target!r}"


def evaluate(
    target: Named,
    data: str | Path,
    *,
    rows: int | None = None,
    system: str | None = None,
    base: bool = False,
    max_new_tokens: int = 128,
) -> Evaluation:
    """Measure a run or a model on a data file: loss, and answers compared with the references.

    Args:
        target: as in `fitune.load`.
        data: a file, a folder, hub:NAME.
        rows: measure the first rows only.
        system: system prompt for rows that have none.
        base: measure the base model, with the adapter switched off.
        max_new_tokens: maximum length of a generated answer.

    Returns:
        `metrics`, and `rows` with each answer beside its reference.

    Raises:
        DataError: rows that cannot be read, or none to measure.
    """
    opened = load(target)
    from fitune.data.read.sources import DataOptions
    from fitune.evaluation.evaluate import evaluate as measure

    with opened.without_adapter() if base else nullcontext():
        return measure(opened, str(data), DataOptions(system=system), rows, max_new_tokens)


def _head(opened: Target, system: str | None) -> list[Message]:
    text = opened.renderer.asking.system if system is None else system
    return cast("list[Message]", [{"role": "system", "content": text}] if text else [])
