"""`fitune chat --json`: a conversation for programs, a JSON object a line.

In: ``{"text": …}`` with maybe ``"side": "base"``, ``"system": …``, ``"clear": true`` or ``"top": 5`` (the likeliest next tokens
in place of an answer). Out: ``{"ready": …}`` once, then for each request ``{"piece": …}`` as the answer comes and ``{"done": …}``
or ``{"error": …}`` at its end. Each side keeps a conversation of its own. SIGINT ends an answer, not the program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

from fitune.errors import FituneError

if TYPE_CHECKING:
    from fitune.data.examples import Message
    from fitune.evaluation.generation import Answer, Sampling
    from fitune.evaluation.inference_model import Target

Say = Callable[[dict[str, object]], None]
SIDES = ("adapter", "base")


class ChatLines:
    """The conversations of one target, one a side."""

    def __init__(self, target: Target, system: str | None, sampling: Sampling, say: Say):
        self.target, self.system, self.sampling, self.say = target, system, sampling, say
        self.messages: dict[str, list[Message]] = {side: [] for side in SIDES}

    def answer_all(self, lines: Iterable[str]) -> None:
        """Answer every line until there are no more."""
        self.say(
            {"ready": True, "model": self.target.base_name, "adapter": self.target.adapter and str(self.target.adapter)}
        )
        for line in lines:
            if not line.strip():
                continue
            try:
                self.answer(_request(line))
            except FituneError as error:
                self.say({"error": str(error)})

    def answer(self, request: dict[str, Any]) -> None:
        """Answer one request."""
        side, text = str(request.get("side", "adapter")), str(request.get("text", ""))
        if request.get("clear"):
            self.messages = {one: [] for one in SIDES}
            self.say({"done": True})
            return
        with self.target.without_adapter() if side == "base" else nullcontext():
            if "top" in request:
                self._next_tokens(text, int(request["top"]), bool(request.get("raw")))
            else:
                self._ask(side, text, request.get("system", self.system))

    def _ask(self, side: str, text: str, system: str | None) -> None:
        """Stream an answer; it joins its side's conversation, also when it was ended before its end."""
        from fitune.evaluation.generation import check_fits, stream

        asked: list[Message] = [*self.messages[side], {"role": "user", "content": text}]
        head: list[Message] = [{"role": "system", "content": system}] if system else []
        prompt = self.target.renderer.prompt_ids(head + asked)
        check_fits(self.target.model, prompt, self.sampling.max_new_tokens)
        answers, pieces = stream(self.target.model, self.target.renderer, prompt, self.sampling), list[str]()
        said: Answer | None = None
        try:
            while True:
                pieces.append(next(answers))
                self.say({"piece": pieces[-1]})
        except StopIteration as end:
            said = cast("Answer", end.value)
        except KeyboardInterrupt:
            answers.close()
        answer: Message = {"role": "assistant", "content": said.text if said else "".join(pieces)}
        if said and said.reasoning:
            answer = {**answer, "reasoning_content": said.reasoning}
        self.messages[side] = [*asked, answer]
        self.say({"done": True, "text": answer["content"], "stopped": bool(said and said.stopped)})

    def _next_tokens(self, text: str, top: int, raw: bool) -> None:
        from fitune.evaluation.next_tokens import next_tokens

        renderer = self.target.renderer
        ids = renderer.text_ids(text) if raw else renderer.prompt_ids([{"role": "user", "content": text}])
        steps = [
            [
                {"token": token, "probability": share}
                for token, share in zip(step.tokens, step.probabilities, strict=True)
            ]
            for step in next_tokens(self.target.model, renderer, ids, top)
        ]
        self.say({"done": True, "steps": steps})


def _request(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise FituneError(f"a line is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("side", "adapter") not in SIDES:
        raise FituneError('a line is an object such as {"text": "Hello", "side": "base"}; sides are adapter and base')
    return found
