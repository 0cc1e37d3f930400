"""The chat template: the model's own exactly as it was trained, or ChatML for a model that has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fitune.data.examples import Message
from fitune.data.render.renderer import Renderer
from fitune.data.render.time_limit import looked_at
from fitune.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SLOWEST_SECONDS = 1.0  # for two messages; a real template takes milliseconds
CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
# ChatML as OpenAI published it (openai-python chatml.md, 2023), without a default system prompt.
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Template:
    """A Jinja chat template; `added_tokens` are the special tokens that it needs and the tokenizer lacked."""

    text: str
    origin: str
    end_of_turn: str | None
    added_tokens: tuple[str, ...] = ()


def resolve_template(tokenizer: PreTrainedTokenizerBase, choice: str = "auto") -> Template:
    """The template to train and to chat with.

    Args:
        tokenizer: not changed; `load_base` adds the tokens.
        choice: auto, chatml, or the path of a Jinja file.

    Raises:
        ModelError: the file is not there, is empty, or is not Jinja.
    """
    own = tokenizer.chat_template
    if isinstance(own, dict):  # several named templates: the one for plain chat
        own = own.get("default")
    if choice == "auto" and own:
        return Template(own, "model", end_of_turn(tokenizer, own))
    if choice in ("auto", "chatml"):
        known = tokenizer.get_vocab()
        added = tuple(token for token in CHATML_TOKENS if token not in known)
        return Template(CHATML, "chatml", CHATML_TOKENS[1], added)
    path = Path(choice).expanduser()
    if not path.is_file():
        raise ModelError(f'model.chat_template is "{choice}", and no such file is there; use auto, chatml or a file')
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(
            f"model.chat_template is {choice}, which is not UTF-8 text that can be read: {error}"
        ) from error
    if not text.strip():
        raise ModelError(f"model.chat_template: {choice} is empty")
    try:
        return Template(text, "file", end_of_turn(tokenizer, text))
    except ModelError as error:
        raise ModelError(f"model.chat_template is {choice}: {error}") from error


def end_of_turn(tokenizer: PreTrainedTokenizerBase, text: str) -> str | None:
    """The special token that ends an answer in a template, found by rendering one; None if there is none.

    Raises:
        ModelError: the template cannot be rendered, or drops the answer.
    """
    renderer = Renderer(tokenizer=tokenizer, template_text=text)
    turns: list[Message] = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "ANSWERHERE"}]
    try:
        with looked_at(_too_slow, SLOWEST_SECONDS):
            rendered = renderer.text_of(turns)
    except DataError as error:
        if isinstance(error.__cause__, TimeoutError):
            raise ModelError(
                f"the chat template takes more than {SLOWEST_SECONDS:g} s for two messages: it loops"
            ) from error
        raise ModelError(f"the chat template cannot be rendered: {error.__cause__}") from error
    if "ANSWERHERE" not in rendered:
        raise ModelError("the chat template drops the assistant's answer; check message['content'] in it")
    return next((token for token in renderer.chat_format.stops if renderer.chat_format.end.endswith(token)), None)


def _too_slow() -> None:
    raise TimeoutError(f"more than {SLOWEST_SECONDS:g} s")
