"""Contents that are lists of parts: text joined, reasoning and calls told apart, pictures and the like refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fitune.data.read.cell_types import checked
from fitune.data.read.messages.calls import read_calls
from fitune.errors import DataError

TEXT = ("text", "input_text", "output_text")
REASONING = ("reasoning", "thinking")
CALL = "tool_call"
NOT_TRAINED = ("image", "audio", "video", "file")


@dataclass
class Parts:
    """What a content of parts says."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, object]] = field(default_factory=list)


def are_parts(value: object) -> bool:
    """Whether a content is a part, or a list that holds some."""
    return any(isinstance(part, Mapping) and "type" in part for part in (value if isinstance(value, list) else [value]))


def read_parts(value: object, role: str, what: str, where: str) -> Parts:
    """The parts of a message's content.

    Args:
        what: the place of the content, for a fault.

    Raises:
        DataError: a part of another type, pictures among them; or reasoning or a call that is no answer's.
    """
    found = Parts()
    for one in value if isinstance(value, list) else [value]:
        part: Mapping[str, object] = one if isinstance(one, Mapping) else {"type": "text", "text": one}
        kind = str(part.get("type"))
        if kind in TEXT:
            found.text += _text(part, ("text", "value"), what)
        elif any(word in kind for word in NOT_TRAINED):
            raise DataError(
                f"{what} has a part of type {kind}; pictures, sound and files are not trained: leave the row out"
            )
        elif kind not in (*REASONING, CALL):
            raise DataError(f"{what} has a part of type {kind:.40}; only parts of type text are read: write it as text")
        elif role != "assistant":
            raise DataError(f"{what} has a part of type {kind}, which belongs to an answer; take it out")
        elif kind == CALL:
            found.calls += read_calls(part.get("value", part.get(CALL)), where)
        elif found.text.strip() or found.calls:
            raise DataError(f"{what} has reasoning behind text or a call; put it first")
        else:
            found.reasoning += _text(part, ("value", "text", *REASONING), what)
    return found


def _text(part: Mapping[str, object], keys: tuple[str, ...], what: str) -> str:
    """The text under the first key that there is."""
    value = next((part[key] for key in keys if part.get(key) is not None), None)
    if not isinstance(value, str):
        raise DataError(f"{what} has a part whose text is {value!r:.60}; expected text")
    return checked(value, what)
