"""What the teacher is asked for a row: new requests like the seeds', harder ones, questions about passages, answers, pairs."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from fitune.teacher.documents import Passage
from fitune.teacher.teacher import Kept, Teacher

Row = dict[str, Any]
SHOWN_EXAMPLES = 4
SCORES = range(1, 11)
RUBRIC = "Is it right, complete, and to the point?"


class Rejected(Exception):
    """An answer that makes no row, with the reason; the place is tried again with another seed."""


@dataclass(frozen=True)
class Source:
    """A thing that rows are made from: a seed or prompt (`prompt`), or a passage; `place` says where it stands."""

    prompt: str
    place: str
    passage: str = ""


@dataclass(frozen=True)
class Asker:
    """The teacher with all that belongs to a question.

    Attributes:
        num_answers: answers per prompt, of which the best and the worst make a pair.
        rubric: what `judge` goes by.
    """

    teacher: Teacher
    prompts: Mapping[str, Template]
    temperature: float = 1.0
    max_tokens: int = 512
    seed: int = 0
    system: str | None = None
    num_answers: int = 3
    rubric: str = RUBRIC

    def say(self, name: str, draw: int, temperature: float | None = None, **values: str) -> str:
        """The whole answer to one of the prompts.

        Raises:
            Rejected: it is empty, or was cut off.
        """
        kept = self._ask(name, draw, temperature, values)
        text = kept["answer"].strip()
        if not text:
            raise Rejected("an empty answer")
        if kept["finish"] == "length":
            raise Rejected(f"an answer longer than {self.max_tokens} tokens")
        return text

    def _ask(self, name: str, draw: int, temperature: float | None, values: Mapping[str, str]) -> Kept:
        return self.teacher.ask(
            self.prompts[name].substitute(values),
            temperature=self.temperature if temperature is None else temperature,
            max_tokens=self.max_tokens,
            seed=draw,
            system=self.system,
        )

    def score(self, prompt: str, completion: str, draw: int) -> tuple[float, str]:
        """A score from 1 to 10, and the reason.

        Raises:
            Rejected: the answer holds no score.
        """
        said = self.say("judge", draw, temperature=0.0, prompt=prompt, completion=completion, rubric=self.rubric)
        found = _score(said)
        if found is None:
            raise Rejected("a judgement without a score from 1 to 10")
        return found


Make = Callable[[Asker, Sequence[Source], int, int], Row]


@dataclass(frozen=True)
class Task:
    """A kind of row. `once` says that each source gives one row, so that there are no more rows than sources."""

    name: str
    words: str
    make: Make
    reads_documents: bool = False
    once: bool = False


def draw_of(seed: int, place: int, attempt: int) -> int:
    """A seed for a row's question that depends on nothing else."""
    return random.Random(f"{seed} {place} {attempt}").getrandbits(31)


def sources_of(passages: Sequence[Passage]) -> list[Source]:
    """Passages as sources."""
    return [Source("", passage.place, passage.text) for passage in passages]


def _instructions(asker: Asker, sources: Sequence[Source], place: int, draw: int) -> Row:
    """A new request after some of the seeds, and its answer."""
    chosen = random.Random(draw).sample(list(sources), min(SHOWN_EXAMPLES, len(sources)))
    examples = "\n".join(f"- {one.prompt}" for one in chosen)
    prompt = _bare(asker.say("instruction", draw, examples=examples))
    return _row(prompt, asker.say("answer", draw, prompt=prompt), "; ".join(one.place for one in chosen))


def _evolved(asker: Asker, sources: Sequence[Source], place: int, draw: int) -> Row:
    """A seed's request made harder, and its answer."""
    source = sources[place % len(sources)]
    prompt = _bare(asker.say("evolve", draw, prompt=source.prompt))
    return _row(prompt, asker.say("answer", draw, prompt=prompt), source.place)


def _questions(asker: Asker, sources: Sequence[Source], place: int, draw: int) -> Row:
    """A question about a passage, answered from it; the passage is kept."""
    source = sources[place % len(sources)]
    prompt = _bare(asker.say("question", draw, passage=source.passage))
    answer = asker.say("grounded_answer", draw, passage=source.passage, prompt=prompt)
    return {**_row(prompt, answer, source.place), "passage": source.passage}


def _answers(asker: Asker, sources: Sequence[Source], place: int, draw: int) -> Row:
    """A given prompt's answer."""
    source = sources[place]
    return _row(source.prompt, asker.say("answer", draw, prompt=source.prompt), source.place)


def _pairs(asker: Asker, sources: Sequence[Source], place: int, draw: int) -> Row:
    """The best and the worst of several answers, by the teacher's own judgement."""
    source = sources[place]
    said = {asker.say("answer", draw + at, prompt=source.prompt) for at in range(asker.num_answers)}
    scored = sorted((*asker.score(source.prompt, text, draw), text) for text in sorted(said))
    (low, _, worst), (high, reason, best) = scored[0], scored[-1]
    if not low < high:
        raise Rejected("answers that are judged alike")
    row = {"prompt": source.prompt, "chosen": best, "rejected": worst}
    return {**row, "source": source.place, "scores": [high, low], "reason": reason}


TASKS = {
    task.name: task
    for task in (
        Task(name="instructions", words="new requests like the seeds', with answers", make=_instructions),
        Task(name="evolve", words="the seeds' requests made harder, with answers", make=_evolved),
        Task(
            name="questions",
            words="questions about documents, answered from them",
            make=_questions,
            reads_documents=True,
        ),
        Task(name="answers", words="an answer to each given prompt", make=_answers, once=True),
        Task(name="pairs", words="the best and the worst of several answers to each prompt", make=_pairs, once=True),
    )
}


def _row(prompt: str, completion: str, place: str) -> Row:
    return {"prompt": prompt, "completion": completion, "source": place}


def _bare(text: str) -> str:
    """Without the quotes, the bullet or the number that models put around a single line."""
    line = re.sub(r"^(?:[-*•]\s+|\d+[.)]\s+)", "", text.strip())
    return line[1:-1].strip() if len(line) > 1 and line[0] == line[-1] and line[0] in "\"'“”" else line


def _score(text: str) -> tuple[float, str] | None:
    """The score of a judgement: of its JSON object, or a text that is nothing but a number."""
    start, end = text.find("{"), text.rfind("}")
    try:
        value = json.loads(text[start : end + 1]) if start >= 0 else {"score": float(text)}
        score = float(value["score"])
    except (ValueError, KeyError, TypeError):
        return None
    return (score, str(value.get("reason", ""))) if SCORES.start <= score <= SCORES.stop - 1 else None
