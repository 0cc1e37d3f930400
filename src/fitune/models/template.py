"""The chat template: the model's own exactly as it was trained, or ChatML for a model that has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fitune.errors import ModelError

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


def resolve_template(tokenizer, choice: str = "auto") -> Template:
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
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise ModelError(f"model.chat_template: {choice} is empty")
    return Template(text, "file", end_of_turn(tokenizer, text))


def end_of_turn(tokenizer, text: str) -> str | None:
    """The special token that a template writes right after an answer, found by rendering one; None if there is none.

    Raises:
        ModelError: the template cannot be rendered.
    """
    marker = "ANSWERHERE"
    turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": marker}]
    try:
        rendered = tokenizer.apply_chat_template(turns, chat_template=text, tokenize=False)
    except Exception as error:  # whatever a foreign template raises is the user's answer
        raise ModelError(f"the chat template cannot be rendered: {error}") from error
    if marker not in rendered:
        raise ModelError("the chat template drops the assistant's answer; check message['content'] in it")
    tail = rendered.split(marker, 1)[1].lstrip()
    specials = sorted({str(token) for token in tokenizer.all_special_tokens} | set(_added(tokenizer)), key=len)
    return next((token for token in reversed(specials) if token and tail.startswith(token)), None)


def _added(tokenizer) -> list[str]:
    """Every added special token, named or not."""
    return [str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special]
