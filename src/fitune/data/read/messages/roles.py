"""The names of roles: the one place that folds them and knows their aliases."""

from __future__ import annotations

from fitune.errors import DataError, did_you_mean

CALL = "function_call"  # ShareGPT's role of a message that holds a call; it becomes an assistant's
# Roles, and what else data sets call them. Those without an alias are left to the templates that know them.
ALIASES = {
    "system": (),
    "developer": (),
    "user": ("human", "prompter"),
    "assistant": ("gpt", "chatgpt", "bot", "chatbot", "model", "ai"),
    CALL: ("tool_call", "tool_calls"),
    "tool": ("observation", "function", "function_response", "tool_response", "tool_result"),
    "ipython": (),
    "context": (),
    "document": (),
    "available_tools": (),
}
ROLES = {name: role for role, others in ALIASES.items() for name in (role, *others)}


def role_of(name: object, where: str) -> str:
    """The role that a name means, case and blanks aside.

    Raises:
        DataError: no known role.
    """
    if not isinstance(name, str):
        raise DataError(f"{where}: the role of a message is {name!r:.60}; expected a name, such as user or assistant")
    folded = name.strip().casefold().replace(" ", "_").replace("-", "_")
    if folded not in ROLES:
        raise DataError(
            f'{where}: the role "{name}" is unknown{did_you_mean(folded, ROLES)}; known are {", ".join(ROLES)}'
        )
    return ROLES[folded]
