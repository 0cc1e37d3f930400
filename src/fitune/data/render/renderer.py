"""The one renderer: the tokens of training, of evaluation and of chat are made here and nowhere else.

What is trained is worked out in characters. The place of an answer in the rendered text is found by rendering the
conversation a second time with another answer in its place: where the two texts part, the answer begins, and where
they meet again, it ends. This needs no `{% generation %}` in the template, and holds for templates that strip
contents, add a default system prompt, or rewrite earlier turns.

A token is trained when its last character lies in a trained span, so a token that straddles the end of the prompt
(a space that merges with the first word of the answer) belongs to the answer that it spells.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fitune.data.rows import Example, Rendered, TokenRow
from fitune.errors import DataError

LOSS_ON = ("completion", "assistant", "last_assistant", "response_template", "all")


@dataclass(frozen=True)
class Renderer:
    """Text and tokens of conversations, with one tokenizer and one template.

    `end_ids` are the tokens that end an answer; generation stops at them, and training includes the one written.
    """

    tokenizer: Any
    template_text: str
    end_ids: tuple[int, ...] = ()
    _end_texts: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self):
        texts = [text for text in self.tokenizer.convert_ids_to_tokens(list(self.end_ids)) if text]
        object.__setattr__(self, "_end_texts", tuple(sorted(texts, key=len, reverse=True)))

    def text_of(self, messages: Sequence[dict[str, str]], generation_prompt: bool = False) -> str:
        """The conversation as the template writes it.

        Raises:
            DataError: the template refuses it, for example for its order of roles.
        """
        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                chat_template=self.template_text,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except Exception as error:  # templates raise whatever their author chose
            roles = ", ".join(message["role"] for message in messages)
            raise DataError(f"the chat template refuses a conversation of {roles}: {error}") from error

    def prompt_ids(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Tokens to generate an answer from: the conversation and the generation prompt."""
        return self.tokenizer(self.text_of(messages, generation_prompt=True), add_special_tokens=False)["input_ids"]

    def text_ids(self, text: str) -> list[int]:
        """Tokens of plain text to continue: no template, BOS if the tokenizer begins texts with one."""
        return self._plain_prefix() + self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def render(
        self, example: Example, loss_on: str, response_template: str | None = None, first_message: int = 0
    ) -> Rendered:
        """A row's text and its trained spans, by character.

        Args:
            first_message: assistant turns before this message are not trained.

        Raises:
            DataError: the template refuses the row, or hides an answer of it.
        """
        if example.messages is None:
            return self._render_text(example)
        text = self.text_of(example.messages)
        if loss_on == "all":
            return Rendered(text, ((0, len(text)),), example.row_number)
        if loss_on == "response_template":
            spans = self._after(text, response_template or "")
            return Rendered(text, spans, example.row_number)
        answers = [index for index, message in enumerate(example.messages) if message["role"] == "assistant"]
        answers = [index for index in answers if index >= first_message]
        if loss_on in ("completion", "last_assistant"):
            answers = answers[-1:]
        spans = tuple(self._answer_span(text, example, index) for index in answers)
        return Rendered(text, spans, example.row_number)

    def tokenize(self, rendered: Sequence[Rendered]) -> Iterator[TokenRow]:
        """Tokens and mask of many rows at once (the tokenizer works on batches in parallel)."""
        if not rendered:
            return
        encoded = self.tokenizer(
            [row.text for row in rendered], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for row, ids, offsets in zip(rendered, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            yield TokenRow(tuple(ids), tuple(_in_spans(offsets, row.spans)), row.row_number)

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

    def _answer_span(self, text: str, example: Example, index: int) -> tuple[int, int]:
        """From the first character of answer `index` through the end token behind it.

        Two stand-ins are rendered in the answer's place; they share no first and no last character with it.
        """
        messages = list(example.messages or ())
        answer = messages[index]["content"].strip()
        stand_in = next(letter * 2 for letter in "XYZ" if not answer.startswith(letter) and not answer.endswith(letter))
        messages[index] = {**messages[index], "content": stand_in}
        other = self.text_of(messages)
        start = _common_prefix(text, other)
        end = len(text) - _common_prefix(text[: start - 1 : -1] if start else text[::-1], other[::-1])
        if stand_in not in other or not text[start:end].strip() == answer:
            raise DataError(
                f"row {example.row_number}: the chat template changes answer {index + 1}: "
                f"{answer[:40]!r} became {text[start:end][:40]!r}; check the template, or use data.loss_on: all"
            )
        return start, self._through_end_token(text, end)

    def _through_end_token(self, text: str, position: int) -> int:
        """Past the end token that follows `position` (blanks may stand between), or `position` if there is none."""
        tail = text[position:]
        blanks = len(tail) - len(tail.lstrip())
        for end in self._end_texts:
            if tail.startswith(end, blanks):
                return position + blanks + len(end)
        return position

    def _after(self, text: str, marker: str) -> tuple[tuple[int, int], ...]:
        """Spans behind each occurrence of the marker, through the next end token (or the end of the text)."""
        spans = []
        start = text.find(marker)
        while start >= 0:
            start += len(marker)
            ends = [(at, len(end)) for end in self._end_texts if (at := text.find(end, start)) >= 0]
            stop = sum(min(ends)) if ends else len(text)
            spans.append((start, stop))
            start = text.find(marker, stop)
        return tuple(spans)


def _in_spans(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Iterator[bool]:
    """For each token's (start, end): does its last character lie in a span?"""
    starts = [start for start, _ in spans]
    for begin, end in offsets:
        at = bisect_right(starts, end - 1) - 1
        yield end > begin and at >= 0 and end - 1 < spans[at][1]


def _common_prefix(one: str, other: str) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(one), len(other))
    while low < high:  # by halves: comparing slices is fast, a loop over characters is not
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low
