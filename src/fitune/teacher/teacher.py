"""Ask a larger model over its OpenAI-compatible address: everything it answers is kept at once, within a budget."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, TypedDict

from fitune.errors import DataError, MissingExtra, ModelError

if TYPE_CHECKING:
    from openai import OpenAI


class Kept(TypedDict):
    """A line of the journal: an answer under the hash of all that it depends on."""

    key: str
    answer: str
    finish: str
    prompt_tokens: int
    new_tokens: int


class BudgetSpent(Exception):
    """No further question may be asked."""


@dataclass(frozen=True)
class Budget:
    """What may be spent, None for no limit; prices are for a million tokens."""

    tokens: int | None = None
    cost: float | None = None
    price_in: float = 0.0
    price_out: float = 0.0


@dataclass
class Spent:
    """What was asked in this session and before it."""

    asked: int = 0
    from_journal: int = 0
    prompt_tokens: int = 0
    new_tokens: int = 0

    def add(self, kept: Kept) -> None:
        """Count an answer."""
        self.prompt_tokens += kept["prompt_tokens"]
        self.new_tokens += kept["new_tokens"]

    def cost(self, budget: Budget) -> float:
        """In the currency of the prices."""
        return (self.prompt_tokens * budget.price_in + self.new_tokens * budget.price_out) / 1e6


@dataclass
class Journal:
    """Every answer as a line of a file, written before it is used; asking again for the same finds it there."""

    path: Path
    answers: dict[str, Kept] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def open(cls, path: Path) -> Journal:
        """The journal of a file, with what a run before this one has kept. A last line that was cut off is dropped."""
        journal = cls(path)
        if path.exists():
            whole = 0
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    kept: Kept = json.loads(line)
                    journal.answers[kept["key"]] = kept
                except (ValueError, KeyError, TypeError):
                    if line.endswith(b"\n"):
                        raise DataError(
                            f"{path} is no journal of generated answers; move it away, or choose another --out"
                        ) from None
                    break
                whole += len(line)
            os.truncate(path, whole)
        return journal

    def add(self, kept: Kept) -> None:
        """Keep an answer, on the disk when this returns."""
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(kept, ensure_ascii=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
            self.answers[kept["key"]] = kept


@dataclass
class Teacher:
    """A model at an address. Faults that pass (429, 5xx, a broken connection) are tried again with growing pauses."""

    client: OpenAI
    model: str
    journal: Journal
    budget: Budget = Budget()
    spent: Spent = field(default_factory=Spent)
    _lock: Lock = field(default_factory=Lock)

    def ask(self, prompt: str, *, temperature: float, max_tokens: int, seed: int, system: str | None = None) -> Kept:
        """The answer to a prompt: the journal's, or the model's.

        Raises:
            BudgetSpent: the budget does not allow another question.
            ModelError: the address or the key is wrong, or the model is not there.
        """
        messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": prompt}]
        asked = {
            "model": self.model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens, "seed": seed,
        }  # fmt: skip
        key = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        with self._lock:
            if kept := self.journal.answers.get(key):
                self.spent.from_journal += 1
                return kept
            self._check_budget()
            self.spent.asked += 1
        kept = self._ask(key, asked)
        self.journal.add(kept)
        with self._lock:
            self.spent.add(kept)
        return kept

    def count_journal(self) -> None:
        """Count what was spent before this session, so that a budget holds over all of them."""
        for kept in self.journal.answers.values():
            self.spent.add(kept)

    def _check_budget(self) -> None:
        budget, spent = self.budget, self.spent
        if budget.tokens is not None and spent.prompt_tokens + spent.new_tokens >= budget.tokens:
            raise BudgetSpent(f"{spent.prompt_tokens + spent.new_tokens:,} of {budget.tokens:,} tokens are spent")
        if budget.cost is not None and spent.cost(budget) >= budget.cost:
            raise BudgetSpent(f"{spent.cost(budget):.4f} of {budget.cost} are spent")

    def _ask(self, key: str, asked: dict[str, Any]) -> Kept:
        import openai

        address = self.client.base_url
        try:
            said = self.client.chat.completions.create(**asked)
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ModelError(
                f"{address} refuses the key ({error.status_code}); give the right one in OPENAI_API_KEY"
            ) from error
        except openai.NotFoundError as error:
            raise ModelError(f'{address} has no model "{self.model}" (404): {_told(error)}') from error
        except openai.APIStatusError as error:
            raise ModelError(f"{address} answers {error.status_code} again and again: {_told(error)}") from error
        except openai.APIConnectionError as error:
            raise ModelError(
                f"{address} cannot be reached ({type(error).__name__}); is the server running? What it has answered is kept: "
                "the same command goes on"
            ) from error
        choice, usage = said.choices[0], said.usage
        return Kept(
            key=key,
            answer=choice.message.content or "",
            finish=str(choice.finish_reason),
            prompt_tokens=usage.prompt_tokens if usage else 0,
            new_tokens=usage.completion_tokens if usage else 0,
        )


def connect(address: str, key: str | None, retries: int = 8, timeout: float = 300.0) -> OpenAI:
    """A client of an address such as http://127.0.0.1:8000/v1.

    Raises:
        MissingExtra: the client library is not installed.
    """
    try:
        from openai import OpenAI
    except ImportError as error:
        raise MissingExtra("asking another model needs the openai package: pip install 'fitune[generate]'") from error
    return OpenAI(base_url=address, api_key=key or "none", max_retries=retries, timeout=timeout)


def _told(error: Any) -> str:
    """What the server said, in a line."""
    body = error.body if isinstance(error.body, dict) else {}
    return str(body.get("message", error.message)).partition("\n")[0][:200]


def named_models(client: OpenAI) -> Sequence[str]:
    """Models that an address lists.

    Raises:
        ModelError: it cannot be reached, or refuses the key.
    """
    import openai

    try:
        return [model.id for model in client.models.list()]
    except openai.APIConnectionError as error:
        raise ModelError(f"{client.base_url} cannot be reached; is the server running?") from error
    except openai.APIStatusError as error:
        raise ModelError(f"{client.base_url} answers {error.status_code} to the question for its models") from error
