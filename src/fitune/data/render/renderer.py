"""The one renderer: the tokens of training, of evaluation and of chat are made here and nowhere else.

The answer is what follows the generation prompt. A trained turn is rendered twice: the messages before it with the
generation prompt, exactly as chat and evaluation will ask, and the messages through it. What the second writes behind
the first, through the end tokens, is trained. The prompt's tokens are those of the prompt alone.

Where a template writes the same history for every turn, one row trains all turns of a conversation. Where it rewrites
history (thinking that is left out of earlier turns), each turn that differs becomes a row of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import cached_property
from time import thread_time
from typing import Any

from fitune.data.examples import Example, Message, Rendered
from fitune.data.render.asking import AS_THE_TEMPLATE, Asking, system_into_user
from fitune.data.render.chat_format import THINKING_SWITCHES, ChatFormat, closing_run, probe_format
from fitune.data.render.encode import Encoder
from fitune.data.render.marks import TEXT, Marks, marks_of
from fitune.data.render.time_limit import TemplateTooSlow, looked_at
from fitune.data.render.turn import Turn, make_turn
from fitune.data.token_rows import TokenRow
from fitune.errors import DataError

LOSS_ON = ("completion", "assistant", "last_assistant", "response_template", "all")
SLOWEST_SECONDS = 5.0  # of computing, for one rendering; a real template takes milliseconds
LONG_TEXT, MOST_TIMES = 1_000_000, 100  # characters; times those of the messages and tools
JSON_RUN = json.dumps(TEXT)[1:-1]
THINKING = ("auto", "train", "mask", "drop")


@dataclass(frozen=True)
class Renderer:
    """Text and tokens of conversations, with one tokenizer and one template.

    `end_ids` are the tokens that end an answer by the tokenizer and the model's config.
    `thinking` says what becomes of the reasoning of answers: train, mask (shown, not trained), drop; auto trains it.
    """

    tokenizer: Any
    template_text: str
    end_ids: tuple[int, ...] = ()
    thinking: str = "auto"
    asking: Asking = AS_THE_TEMPLATE
    _begun: list[float] = field(default_factory=list, init=False, repr=False, compare=False)

    @cached_property
    def special_texts(self) -> tuple[str, ...]:
        """Texts of the special tokens, longest first."""
        known = {str(token) for token in self.tokenizer.all_special_tokens}
        added = getattr(self.tokenizer, "added_tokens_decoder", {}).values()
        known |= {str(token) for token in added if token.special}
        known |= {text for text in self.tokenizer.convert_ids_to_tokens(list(self.end_ids)) if text}
        return tuple(sorted((text for text in known if text), key=len, reverse=True))

    @cached_property
    def _template(self) -> str:
        return self.asking.dated(self.template_text)

    @cached_property
    def chat_format(self) -> ChatFormat:
        """What the template does."""
        return probe_format(self._apply, self.special_texts)

    @cached_property
    def marks(self) -> Marks:
        """Texts that become special tokens or divide turns."""
        turns: list[Message] = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]

        def written() -> str:
            try:
                return self._apply(self.chat_format.adapt([*turns, turns[0]]), True)
            except DataError as error:  # a template that must be asked otherwise: special tokens alone
                if isinstance(error.__cause__, TimeoutError):
                    raise
                return ""

        return marks_of(self.tokenizer, self.special_texts, written)

    @cached_property
    def encoder(self) -> Encoder:
        """Text → tokens."""
        return Encoder(self.tokenizer, self.marks)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens at which generation stops: `end_ids`, and what the template writes at the end of an answer."""
        own = self.tokenizer.convert_tokens_to_ids(list(self.chat_format.stops))
        return tuple(sorted({*self.end_ids, *own}))

    def _apply(
        self,
        messages: Sequence[Any],
        generation_prompt: bool = False,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
    ) -> str:
        """The template's own rendering of messages that are already as it reads them.

        Raises:
            DataError: the template refuses them, for example for their order of roles.
        """
        more: dict[str, Any] = {} if thinking is None else dict.fromkeys(THINKING_SWITCHES, thinking)
        self._begun[:] = [thread_time()]
        try:
            text = self.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or None,
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **more,
            )
        except TemplateTooSlow:
            raise
        except Exception as error:  # templates raise whatever their author chose
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"the chat template refuses a conversation of {roles}: {error}") from error
        finally:
            self._begun.clear()
        if len(text) > LONG_TEXT and len(text) > MOST_TIMES * len(json.dumps([messages, tools], default=str)):
            raise DataError(
                f"the chat template writes {len(text):,} characters for {len(messages)} messages of a few: it repeats "
                "itself; use another template (model.chat_template)"
            )
        return text

    def limited(self) -> AbstractContextManager[None]:
        """A block in which no rendering takes longer than SLOWEST_SECONDS of computing.

        Raises:
            TemplateTooSlow: one does.
        """
        return looked_at(self._look)

    def _look(self) -> None:
        if self._begun and thread_time() - self._begun[0] > SLOWEST_SECONDS:
            raise TemplateTooSlow(
                f"the chat template takes more than {SLOWEST_SECONDS:g} s for one conversation: it loops; use another "
                "template (model.chat_template)"
            )

    def text_of(
        self,
        messages: Sequence[Message],
        generation_prompt: bool = False,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
    ) -> str:
        """The conversation as the template writes it.

        Args:
            thinking: True and False ask for an answer with and without reasoning; None asks as `asking` says.

        Raises:
            DataError: the template refuses it.
        """
        messages, tools = self._as_read(messages, tools)
        return self.marks.shown(self._text(messages, generation_prompt, tools, thinking))

    def _as_read(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]
    ) -> tuple[list[Message], Sequence[dict[str, Any]]]:
        """Messages and tools, texts of special tokens in them hidden where they are to be plain text."""
        if not self.asking.split_special_tokens:
            return list(messages), tools
        return self.marks.hidden(messages), self.marks.hidden_tools(tools)

    def _text(
        self,
        messages: Sequence[Message],
        generation_prompt: bool = False,
        tools: Sequence[dict[str, Any]] = (),
        thinking: bool | None = None,
    ) -> str:
        if self.asking.system_as_user:
            messages = system_into_user(messages)
        thinking = self.asking.thinking if thinking is None else thinking
        text = self._apply(self.chat_format.adapt(messages), generation_prompt, tools, thinking)
        if JSON_RUN in text:
            raise DataError(
                "the chat template writes a text of special tokens as JSON escapes; take the special tokens out of the row"
            )
        return text

    def prompt_ids(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]] = (), thinking: bool | None = None
    ) -> list[int]:
        """Tokens to generate an answer from: the conversation and the generation prompt."""
        messages, tools = self._as_read(messages, tools)
        return self.encoder.ids(self._text(messages, True, tools, thinking))

    def last_turn(self, example: Example) -> Turn:
        """The last answer of an example as training has it.

        Raises:
            DataError: as `render`.
        """
        messages, tools = self._as_read(self._with_reasoning(example.messages or ()), example.tools)
        turn = self._turn(messages, len(messages) - 1, tools)
        return replace(turn, prompt=self.marks.shown(turn.prompt), answer=self.marks.shown(turn.answer))

    def without_end(self, answer: str) -> str:
        """An answer without the end tokens behind it."""
        return answer[: closing_run(answer, self.special_texts)]

    def question_ids(self, example: Example) -> list[int]:
        """Tokens to generate the last answer of an example from, asked as training asks for it."""
        messages = self._with_reasoning(example.messages or ())
        return self.prompt_ids(messages[:-1], example.tools, _thinks(messages[-1]))

    def text_ids(self, text: str) -> list[int]:
        """Tokens of plain text to continue: no template, BOS if the tokenizer begins texts with one."""
        return self._plain_prefix() + self.encoder.ids(text)

    def quoted(self, example: Example) -> str | None:
        """What is to be said of an example in whose texts a special token stands; None where none does."""
        if (mark := self.marks.first_in(example)) is None:
            return None
        if example.messages is None:
            return f"{mark} stands in the text and is encoded as the token"
        as_text = self.asking.split_special_tokens
        done = "encoded as plain text" if as_text else "encoded as the token"
        return f"{mark} stands in a message and is {done} (data.split_special_tokens: {str(as_text).lower()})"

    def render(
        self, example: Example, loss_on: str, response_template: str | None = None, first_message: int = 0
    ) -> list[Rendered]:
        """A row's text and its trained spans, by character; several where the template rewrites history.

        Args:
            first_message: assistant turns before this message are not trained.

        Raises:
            DataError: the template refuses the row, or hides an answer of it; the row is named.
        """
        try:
            return self._render(example, loss_on, response_template, first_message)
        except DataError as error:
            raise type(error)(f"row {example.row_number}: {error}") from error

    def render_side(self, example: Example, first_message: int) -> Rendered:
        """The answers from ``first_message`` on as one row, for methods that compare whole answers.

        Raises:
            DataError: as `render`; or the template rewrites history between them, so that they are no single row.
        """
        rows = self.render(example, "assistant", first_message=first_message)
        if len(rows) > 1:
            raise DataError(
                f"row {example.row_number}: there are several answers behind the prompt, and the chat template rewrites "
                "earlier ones; give one answer"
            )
        return rows[0]

    def _render(
        self, example: Example, loss_on: str, response_template: str | None, first_message: int
    ) -> list[Rendered]:
        if example.messages is None:
            return [self._render_text(example)]
        messages, tools = self._as_read(self._with_reasoning(example.messages), example.tools)
        self._refuse_hidden_tools(example)
        if loss_on in ("all", "response_template"):
            text = self._text(messages, tools=tools)
            spans = ((0, len(text)),) if loss_on == "all" else self._after(text, response_template or "")
            return [Rendered(text, spans, example.row_number)]
        answers = [at for at, said in enumerate(messages) if said["role"] == "assistant" and at >= first_message]
        if loss_on == "completion" and example.completion_from is not None:
            answers = [at for at in answers if at >= example.completion_from]
        elif loss_on in ("completion", "last_assistant"):
            answers = answers[-1:]
        turns = [
            self._turn(messages, at, tools, example.begun if at == example.completion_from else 0)
            for at in answers
            if at not in example.untrained
        ]
        if not turns:
            return [Rendered(self._text(messages, tools=tools), (), example.row_number)]
        return _as_few_rows(turns, example.row_number)

    def _turn(self, messages: Sequence[Message], at: int, tools: Sequence[dict[str, Any]], begun: int = 0) -> Turn:
        """Answer ``at`` as chat asks for it; its first ``begun`` characters are given and not trained."""
        thinks = _thinks(messages[at])
        prompt = self._text(messages[:at], True, tools, thinks)
        written = self._text(messages[: at + 1], False, tools, thinks)
        turn = self._made_turn(prompt, written, messages[at])
        return turn.begun_with(messages[at]["content"].strip()[:begun]) if begun else turn

    def _made_turn(self, prompt: str, written: str, message: Message) -> Turn:
        mask = self.thinking == "mask"
        try:
            return make_turn(prompt, written, message, self.chat_format, self.special_texts, mask)
        except DataError as error:  # the message shows texts, which are to be as they are meant
            raise type(error)(self.marks.shown_in(str(error))) from error

    def _with_reasoning(self, messages: Sequence[Message]) -> list[Message]:
        """The messages, without their reasoning where it is to be left out."""
        if self.thinking != "drop":
            return list(messages)
        return [_without_reasoning(message) for message in messages]

    def _refuse_hidden_tools(self, example: Example) -> None:
        """Raises DataError for tools that the template does not show."""
        if example.tools and not self.chat_format.shows_tools:
            raise DataError(
                "the row has tools, and the chat template cannot show them; use a template that knows tools "
                "(model.chat_template), or take the tools out of the data"
            )

    def tokenize(self, rendered: Sequence[Rendered]) -> Iterator[TokenRow]:
        """Tokens and mask of many rows at once, as `Encoder.rows` makes them.

        Raises:
            DataError: as `Encoder.rows`.
        """
        for row in self.encoder.rows(rendered):
            yield TokenRow(row.ids, row.trained, rendered[row.source].row_number)

    def _render_text(self, example: Example) -> Rendered:
        """Plain text, from BOS (if the tokenizer begins texts with one) to the end token, every token trained."""
        begin = self.tokenizer.convert_ids_to_tokens(self._plain_prefix())
        text = "".join(begin) + (example.text or "")
        end = self.tokenizer.eos_token or ""
        if end and not text.endswith(end):
            text += end
        return Rendered(text, ((0, len(text)),), example.row_number)

    def _plain_prefix(self) -> list[int]:
        """[BOS] for a tokenizer that adds one to plain text, else []."""
        bos = self.tokenizer.bos_token_id
        return [bos] if bos is not None and self.tokenizer("a")["input_ids"][:1] == [bos] else []

    def _after(self, text: str, marker: str) -> tuple[tuple[int, int], ...]:
        """Spans behind each occurrence of the marker, through the next end token (or the end of the text)."""
        end_texts = [text for text in self.tokenizer.convert_ids_to_tokens(list(self.stop_ids)) if text]
        spans = []
        start = text.find(marker)
        while start >= 0:
            start += len(marker)
            ends = [(at, len(end)) for end in end_texts if (at := text.find(end, start)) >= 0]
            stop = sum(min(ends)) if ends else len(text)
            spans.append((start, stop))
            start = text.find(marker, stop)
        return tuple(spans)


def _thinks(message: Message) -> bool:
    """Whether an answer is asked for with thinking: it is where it has some."""
    return bool(message.get("reasoning_content", "").strip())


def _without_reasoning(message: Message) -> Message:
    bare = message.copy()
    bare.pop("reasoning_content", None)
    return bare


def _as_few_rows(turns: Sequence[Turn], row_number: int) -> list[Rendered]:
    """Turns whose text goes on from the turn before share a row with it; each other one begins a row of its own."""
    rows: list[Rendered] = []
    for turn in turns:
        border = len(turn.prompt)
        span = (border + turn.trained_from, len(turn.text))
        if rows and turn.prompt.startswith(rows[-1].text):
            before = rows.pop()
            rows.append(replace(before, text=turn.text, spans=(*before.spans, span), prompts=(*before.prompts, border)))
        else:
            rows.append(Rendered(turn.text, (span,), row_number, (border,)))
    return rows
