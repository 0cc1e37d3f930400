"""One trained answer as chat would ask for it: the prompt, and what the template writes from there through its end tokens.

In: a rendering of the messages before the answer with the generation prompt, one through the answer without it. Out: a
`Turn`. Knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fitune.data.examples import Message
from fitune.data.render.chat_format import THINK_CLOSE, THINK_OPEN, ChatFormat, closing_run, leading_specials
from fitune.errors import DataError


@dataclass(frozen=True)
class Turn:
    """`prompt` is what chat asks with; `answer` is trained from its character `trained_from` on."""

    prompt: str
    answer: str
    trained_from: int = 0

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return self.prompt + self.answer

    def begun_with(self, given: str) -> Turn:
        """The turn with the beginning of its answer given and not trained."""
        return replace(self, trained_from=self.answer.index(given) + len(given))


def make_turn(
    prompt: str, written: str, message: Message, chat_format: ChatFormat, special_texts: Sequence[str], mask: bool
) -> Turn:
    """Where the template's row goes on from the prompt, the answer is what it writes.

    Where it does not, the prompt opens something that rows never close (DeepSeek: `<think>`; an empty thought that
    history leaves out): the answer is then the message behind the prompt as it stands, thinking closed first.

    Args:
        prompt: the messages before the answer with the generation prompt.
        written: the messages through the answer.
        mask: the reasoning is shown and not trained.

    Raises:
        DataError: neither is possible; both texts are in the message.
    """
    calls = bool(message.get("tool_calls"))
    reasoning = message.get("reasoning_content", "").strip()
    if written.startswith(prompt):
        answer = _ended(written[len(prompt) :], calls, chat_format, special_texts)
    else:
        answer = _composed(prompt, written, message, chat_format) + chat_format.end
    _refuse_hidden(answer, message, chat_format)
    start = answer.index(reasoning) + len(reasoning) if mask and reasoning else 0
    return Turn(prompt, answer, start)


def _ended(answer: str, calls: bool, chat_format: ChatFormat, special_texts: Sequence[str]) -> str:
    """The answer through its end tokens, without what the template writes behind them."""
    if not calls and answer.endswith(chat_format.tail):
        return answer[: len(answer) - len(chat_format.tail)] + chat_format.end
    closing = closing_run(answer, special_texts)
    if end := leading_specials(answer[closing:], special_texts):
        return answer[:closing] + end
    return answer.rstrip() + (chat_format.call_end if calls else chat_format.end)


def _composed(prompt: str, written: str, message: Message, chat_format: ChatFormat) -> str:
    """The answer behind a prompt that the template's own row does not begin with.

    Raises:
        DataError: what the row has there is not the message as it stands.
    """
    shown = written[: len(written) - len(chat_format.tail)] if written.endswith(chat_format.tail) else written
    content = message["content"]
    for text in dict.fromkeys((content, content.strip())):
        if text and not message.get("tool_calls") and shown.endswith(text):
            before = shown[: len(shown) - len(text)]
            if prompt.startswith(before.rstrip()):
                return _thought(prompt, message) + text
    at = next((i for i, (one, other) in enumerate(zip(prompt, written, strict=False)) if one != other), 0)
    raise DataError(
        f"the template writes this answer behind {written[max(at - 20, 0) : at + 40]!r}, and asks for it with "
        f"{prompt[max(at - 20, 0) :]!r:.120}; what is trained would not be what chat asks for"
    )


def _thought(prompt: str, message: Message) -> str:
    """The reasoning, and the mark that closes it, where the prompt opens a thought; as DeepSeek-R1 and Qwen3 write it."""
    reasoning = message.get("reasoning_content", "").strip()
    opened = prompt.rstrip().endswith(THINK_OPEN)
    if opened:
        return f"{reasoning}\n{THINK_CLOSE}\n\n"
    return f"{THINK_OPEN}\n{reasoning}\n{THINK_CLOSE}\n\n" if reasoning else ""


def _refuse_hidden(answer: str, message: Message, chat_format: ChatFormat) -> None:
    """Raises DataError when the answer does not show the message."""
    content = message["content"].strip()
    if content and content not in answer:
        raise DataError(
            f"the chat template does not show the answer as it is: {content[:40]!r} became {answer[:40]!r}; check the "
            "template, or use data.loss_on: all"
        )
    reasoning = message.get("reasoning_content", "").strip()
    if reasoning and reasoning not in answer:
        raise DataError(
            f"the chat template does not show the reasoning of an answer ({reasoning[:40]!r}); leave it out with "
            "data.thinking: drop"
        )
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    for name in names:
        if answer.count(name) < names.count(name):
            raise DataError(
                f"the chat template does not show {len(names)} calls in one turn ({name} stands in it {answer.count(name)} "
                "times); use a template that knows them (model.chat_template)"
            )
