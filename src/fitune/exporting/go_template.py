"""A Jinja chat template as the Go template that Ollama fills in: derived from what it renders, and proved on probes.

Ollama has no Jinja. Nearly every chat template writes each turn as fixed text, the content, fixed text; these texts are
read off a few renderings. A conversation put together from them must then equal the Jinja template's own text on every
probe, or nothing is derived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from fitune.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = dict[str, str]
ROLES = ("system", "user", "assistant")
# Contents that no template would write by itself, and that a template's `trim` leaves as they are.
SYSTEM, USER, ANSWER, AGAIN = "Qsystemq", "Quserq", "Qanswerq", "Qagainq"


@dataclass(frozen=True)
class Turns:
    """The fixed texts of a chat template.

    Attributes:
        start: BOS, where the runtime writes it by itself.
        default_system: written when the first message is not a system prompt.
        before, after: around the content of each role.
        generation: opens the answer.
    """

    start: str
    default_system: str
    before: dict[str, str]
    after: dict[str, str]
    generation: str

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation up to where the answer begins."""
        head = "" if messages[0]["role"] == "system" else self.default_system
        turns = [self.before[turn["role"]] + turn["content"] + self.after[turn["role"]] for turn in messages]
        return self.start + head + "".join(turns) + self.generation

    def go(self) -> str:
        """The Go template, without `start`. It has no line breaks of its own: every one belongs to the prompt."""
        first = f'{{{{ if ne (index .Messages 0).Role "system" }}}}{self.default_system}{{{{ end }}}}'
        parts = [first if self.default_system else ""]
        parts.append("{{ range $i, $message := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}")
        for number, role in enumerate(("user", "assistant", "system")):
            word = "if" if number == 0 else "else if"
            after = self.after[role]
            if role == "assistant":  # an answer that is begun is gone on with
                after = f"{{{{ if not $last }}}}{after}{{{{ end }}}}"
            parts.append(f'{{{{ {word} eq .Role "{role}" }}}}{self.before[role]}{{{{ .Content }}}}{after}')
        parts.append('{{ end }}{{ if and $last (ne .Role "assistant") }}' + self.generation + "{{ end }}{{ end }}")
        return "".join(parts)


def derive(tokenizer: PreTrainedTokenizerBase, template_text: str, bos: str = "") -> Turns:
    """The template's turns.

    Args:
        bos: text that the runtime puts before a prompt by itself; empty for nothing.

    Raises:
        ModelError: it is not of that kind, with the first conversation that shows it.
    """

    def render(messages: Sequence[Message], generation: bool = True) -> str:
        text = tokenizer.apply_chat_template(
            list(messages), chat_template=template_text, tokenize=False, add_generation_prompt=generation
        )
        return cast(str, text)

    try:
        turns = _read_off(render, bos)
    except Exception as error:  # a template raises whatever its author chose; a text that is not found is ValueError
        raise _underivable(f"it refuses a plain conversation, or hides a part of it ({error})") from error
    for probe in probes():
        wanted = render(probe)
        if turns.render(probe) != wanted:
            roles = ", ".join(turn["role"] for turn in probe)
            raise _underivable(
                f"a conversation of {roles} is {wanted!r:.200}, and fixed text around each turn gives "
                f"{turns.render(probe)!r:.200}"
            )
    if '"""' in turns.go() or any("{{" in text for text in _texts(turns)):
        raise _underivable("it writes characters that a Modelfile cannot hold")
    return turns


def probes() -> list[list[Message]]:
    """Conversations on which a derived template is proved."""
    system = {"role": "system", "content": "Answer in one word."}
    asks = [
        {"role": "user", "content": text} for text in ("Hello?", "What is\n\n2 + 2?", "{{ .Role }} <b>'\"&\\ ü 你好")
    ]
    says = [{"role": "assistant", "content": text} for text in ("Hi there.", "Four\nof them")]
    one = asks[:1]
    long = [asks[0], says[0], asks[1], says[1], asks[2]]
    return [one, [system, *one], [asks[2]], [asks[0], says[0], asks[1]], [system, asks[1], says[1], asks[0]], long,
            [system, *long]]  # fmt: skip


def _read_off(render: Callable[[Sequence[Message], bool], str], bos: str) -> Turns:
    """The fixed texts from four renderings; a text that is not where it should be raises ValueError."""
    user, answer = {"role": "user", "content": USER}, {"role": "assistant", "content": ANSWER}
    again, system = {"role": "user", "content": AGAIN}, {"role": "system", "content": SYSTEM}
    bare, asked = render([user], False), render([user], True)
    head, after_user = bare.split(USER)
    generation = asked.removeprefix(bare)
    if not asked.startswith(bare):
        raise ValueError("the generation prompt changes the text before it")
    _, between, rest = _split(render([user, answer, again], False), USER, ANSWER, AGAIN)[:3]
    if not between.startswith(after_user):
        raise ValueError("turns change with what follows them")
    before_answer = between.removeprefix(after_user)
    with_system, system_to_user, _ = _split(render([system, user], False), SYSTEM, USER)
    after_answer = render([user, answer], False).split(ANSWER)[1]
    before_user = rest.removeprefix(after_answer)
    if not rest.startswith(after_answer) or not head.endswith(before_user):
        raise ValueError("the last answer is written otherwise than an earlier one")
    if not system_to_user.endswith(before_user):
        raise ValueError("a system prompt changes the user's turn")
    opening = head.removesuffix(before_user)
    if not (opening.startswith(bos) and with_system.startswith(bos)):
        raise ValueError(f"it does not begin with {bos}")
    return Turns(
        start=bos,
        default_system=opening.removeprefix(bos),
        before={"user": before_user, "assistant": before_answer, "system": with_system.removeprefix(bos)},
        after={"user": after_user, "assistant": after_answer, "system": system_to_user.removesuffix(before_user)},
        generation=generation,
    )


def _split(text: str, *marks: str) -> list[str]:
    """The pieces of a text around marks that it must hold in this order."""
    pieces: list[str] = []
    for mark in marks:
        piece, found, text = text.partition(mark)
        if not found:
            raise ValueError(f"it does not show {mark}")
        pieces.append(piece)
    return [*pieces, text]


def _texts(turns: Turns) -> list[str]:
    return [turns.start, turns.default_system, turns.generation, *turns.before.values(), *turns.after.values()]


def _underivable(why: str) -> ModelError:
    return ModelError(f"this model's chat template cannot be written as Ollama's (Go) template: {why}")
