"""Tool calls in answers: the tools a model may call, and whether an answer calls what was wanted.

Templates write calls in many ways (JSON, XML, a form of their own). What a right call looks like is therefore asked of the
template: an answer is right when it is the template's own text of the wanted calls, JSON compared as JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fitune.errors import DataError


def read_tools(path: str) -> tuple[dict[str, Any], ...]:
    """The tools of a JSON file: a list in OpenAI's form (`type: function`), or bare function schemas.

    Raises:
        DataError: no such file, no JSON, or something else than tools.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"the tools in {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    tools = found if isinstance(found, list) else [found]
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"{path}: tool {number} is {tool!r:.60}; an object with a name and parameters is needed")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in tools)


def same_calls(said: str, wanted: str) -> bool:
    """Whether two texts of calls are the same, blanks aside and JSON objects by their values."""
    return _plain(said) == _plain(wanted)


def _plain(text: str) -> str:
    """The text without blanks, each JSON object in it written with sorted keys."""
    decoder, at = json.JSONDecoder(), 0
    pieces: list[str] = []
    while (start := text.find("{", at)) >= 0:
        pieces.append("".join(text[at:start].split()))
        try:
            value, at = decoder.raw_decode(text, start)
            pieces.append(json.dumps(value, sort_keys=True))
        except ValueError:
            pieces.append("{")
            at = start + 1
    return "".join([*pieces, *text[at:].split()])
