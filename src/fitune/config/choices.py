"""Settings whose words come from a registry, for pydantic, the flags, the faults and the documents.

    form: Annotated[str, one_of(["auto"], DATA_FORMS)] = "auto"

validates, reads in the JSON schema and is described like `Literal["auto", "messages", ...]`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticKnownError, core_schema


@dataclass(frozen=True)
class OneOf:
    """What `Annotated` carries: groups of names, read each time, so that a registry may still grow."""

    groups: tuple[Iterable[str], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every name, in order."""
        return tuple(name for group in self.groups for name in group)

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        return {"enum": list(self.names), "type": "string"}

    def _validate(self, value: object) -> str:
        """The value, or pydantic's own error for a word that is not in a `Literal`."""
        names = self.names
        if isinstance(value, str) and value in names:
            return value
        *others, last = map(repr, names)
        expected = f"{', '.join(others)} or {last}" if others else last
        raise PydanticKnownError("literal_error", {"expected": expected})


def one_of(*groups: Iterable[str]) -> OneOf:
    """A text that is one of these names: lists of words, or registries by their keys."""
    return OneOf(groups)
