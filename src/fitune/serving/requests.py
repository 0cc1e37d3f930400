"""What a client sends, checked: OpenAI's chat completions and completions. A field that fitune does not know is an error."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fitune.data.examples import Message
from fitune.data.read.messages.conversation import check_order
from fitune.data.read.messages.message import read_message
from fitune.errors import DataError, FituneError

# Fields of clients that change nothing in an answer.
WITHOUT_EFFECT = frozenset(
    ("user", "store", "metadata", "parallel_tool_calls", "service_tier", "safety_identifier", "prompt_cache_key")
)
# Fields that would change the answer, and the values with which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1, None), "frequency_penalty": (0, None), "presence_penalty": (0, None), "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}), "best_of": (1, None), "echo": (False, None), "suffix": (None, ""),
    "tool_choice": (None, "auto", "none"),
}  # fmt: skip


class BadRequest(FituneError):
    """A request that cannot be answered; `field` is where."""

    def __init__(self, text: str, field: str | None = None, status: int = 400):
        super().__init__(text)
        self.field, self.status = field, status


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk with the number of tokens."""

    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class Question(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: list[str] = []
    stream: bool = False
    stream_options: StreamOptions | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _with_text(cls, value: list[str]) -> list[str]:
        return [text for text in value if text]


class ChatQuestion(Question):
    """`POST /v1/chat/completions`. `enable_thinking` asks for reasoning or for none; None as the model was trained."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] = []
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    enable_thinking: bool | None = None

    def read_messages(self) -> list[Message]:
        """The messages as templates see them, read as training reads data.

        Raises:
            BadRequest: no messages, or one that is none.
        """
        if not self.messages:
            raise BadRequest("messages is empty; give at least one message", "messages")
        try:
            read = [read_message(message, f"messages[{at}]") for at, message in enumerate(self.messages)]
            check_order(read, "messages")
        except DataError as error:
            raise BadRequest(str(error), "messages") from error
        return read


class TextQuestion(Question):
    """`POST /v1/completions`: text to go on from, without the chat template."""

    prompt: str | list[str] | list[int]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    def one_prompt(self) -> str | list[int]:
        """The prompt, as text or as token ids.

        Raises:
            BadRequest: several, or an empty one.
        """
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], str):
            if len(prompt) > 1:
                raise BadRequest(f"prompt holds {len(prompt)} texts; send them as requests of their own", "prompt")
            prompt = prompt[0]
        if not prompt:
            raise BadRequest("prompt is empty; give at least one word", "prompt")
        return prompt  # type: ignore[return-value]


def read_question(body: bytes, kind: type[Question]) -> Question:
    """A request's body as a question.

    Raises:
        BadRequest: no JSON object, an unknown field, a value of the wrong kind, or a field that has no counterpart here.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the body is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise BadRequest(f"the body is {type(given).__name__}; a JSON object is needed")
    for name, allowed in NEUTRAL.items():
        if name in given and given[name] not in allowed:
            raise BadRequest(
                f"{name} is {json.dumps(given[name])[:60]}, which fitune serve does not have; leave it out", name
            )
    if given.get("tool_choice") == "none":
        given = {**given, "tools": []}
    extra = given.pop("chat_template_kwargs", None) or {}
    if isinstance(extra, dict) and set(extra) <= {"enable_thinking"}:
        given = {**given, **extra}
    elif extra:
        raise BadRequest("of chat_template_kwargs only enable_thinking is known", "chat_template_kwargs")
    left = {key: value for key, value in given.items() if key not in WITHOUT_EFFECT and key not in NEUTRAL}
    try:
        return kind.model_validate({key: value for key, value in left.items() if value is not None})
    except ValidationError as error:
        fault = error.errors()[0]
        place = ".".join(map(str, fault["loc"]))
        text = "is not known" if fault["type"] == "extra_forbidden" else f"is wrong: {fault['msg']}"
        raise BadRequest(f"{place} {text}", place) from error
