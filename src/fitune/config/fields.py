"""The settings one by one, as the YAML file, the flags, the faults and the documents need them.

In: the pydantic model of fitune.config.sections. Out: `all_fields()`, dotted key → `Field`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from fitune.config.choices import OneOf
from fitune.config.sections import Settings
from fitune.methods.registry import METHODS

FREE = "trainer"  # the one section whose keys are not ours


@dataclass(frozen=True)
class Field:
    """One setting. ``kinds`` holds its types without Literal and null, ``choices`` the words it may be."""

    key: str
    default: object
    doc: str
    kinds: tuple[type, ...]
    choices: tuple[str, ...]
    item_choices: tuple[str, ...]
    nullable: bool
    lower: float | None
    lower_open: bool
    upper: float | None
    upper_open: bool

    @property
    def section(self) -> str:
        """The part before the dot; empty for a setting at the top."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        """The part after the dot."""
        return self.key.rpartition(".")[2]

    @property
    def range(self) -> str:
        """``above 0``, ``0 to 1 excluding 1``, ``1 or more``, or empty."""
        if self.lower is None:
            return ""
        whole = int in self.kinds
        if self.upper is not None:
            ends = [f"{end:g}" for end, is_open in self._ends if is_open]
            return f"{self.lower:g} to {self.upper:g}" + (f" excluding {' and '.join(ends)}" if ends else "")
        if self.lower_open:
            return f"{self.lower + 1:g} or more" if whole else f"above {self.lower:g}"
        return f"{self.lower:g} or more"

    @property
    def _ends(self) -> tuple[tuple[float | None, bool], ...]:
        return (self.lower, self.lower_open), (self.upper, self.upper_open)

    @property
    def kind(self) -> str:
        """What may be written, in words: ``a whole number, 1 or more, or null``."""
        words = [f"one of {', '.join(self.choices)}"] if self.choices else []
        names = {
            bool: "true or false", int: "a whole number", float: "a number", str: "text",
            list: "a list", dict: "a mapping",
        }  # fmt: skip
        words += [names[kind] for kind in self.kinds]
        if self.item_choices:
            words[-1] = f"a list out of {', '.join(self.item_choices)}"
        if self.range:
            words[-1] += f", {self.range}"
        if self.nullable:
            words.append("null")
        return ", or ".join(words)


@cache
def all_fields() -> dict[str, Field]:
    """Every setting by its dotted key, in the order of the sections; ``trainer`` is not among them."""
    top = [field for field in _walk(Settings, "") if "." not in field.key]
    return {field.key: field for field in [*top, *(field for field in _walk(Settings, "") if "." in field.key)]}


def given(settings: Settings) -> frozenset[str]:
    """Dotted names of what was set on purpose: in a file, by a flag, or as an argument.

    null and auto leave the choice to fitune, whoever wrote them.
    """
    found = set()
    for key in all_fields():
        section, _, name = key.rpartition(".")
        part = getattr(settings, section) if section else settings
        if name in part.model_fields_set and getattr(part, name) not in (None, "auto"):
            found.add(key)
    return frozenset(found)


@cache
def sections() -> dict[str, str]:
    """Section → what it is about."""
    found = {}
    for name, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found[name] = (info.annotation.__doc__ or "").strip()
    found[FREE] = Settings.model_fields[FREE].description or ""
    return found


def _with_method_defaults(key: str, doc: str) -> str:
    """The text of a setting whose null is each method's own value, with these values at its end: `` (ppo 4, grpo 8)``."""
    section, _, name = key.rpartition(".")
    own = {
        method.name: getattr(method.sampling, name)
        for method in METHODS.values()
        if method.sampling and method.section == section and hasattr(method.sampling, name)
    }
    values = ", ".join(f"{method} {value:g}" for method, value in own.items())
    return f"{doc.removesuffix('.')} ({values})." if own else doc


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Field]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _walk(kind, f"{prefix}{name}.")
        elif prefix or name != FREE:
            yield _field(f"{prefix}{name}", info)


def _words_of(annotation: object, metadata: Sequence[object]) -> tuple[str, ...]:
    """The words that an annotation allows, of a `Literal` or of a registry; none when it allows more than words."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return next((part.names for part in metadata if isinstance(part, OneOf)), ())


def _written_as(metadata: Sequence[object]) -> object:
    """The types that a setting may be written in, where they are turned into one; None where it is written as it is."""
    return next((part.json_schema_input_type for part in metadata if isinstance(part, BeforeValidator)), None)


def _field(key: str, info: FieldInfo) -> Field:
    kinds: list[type] = []
    choices: list[str] = []
    items: list[str] = []
    bounds: dict[str, float] = {}
    nullable = False
    pending: list[tuple[object, tuple[object, ...]]] = [(info.annotation, tuple(info.metadata))]
    while pending:
        annotation, metadata = pending.pop(0)
        if words := _words_of(annotation, metadata):
            choices += words
            continue
        if (written := _written_as(metadata)) is not None:
            pending.insert(0, (written, ()))
            continue
        for part in metadata:
            for inner in getattr(part, "metadata", [part]):
                bounds |= {name: getattr(inner, name) for name in ("gt", "ge", "lt", "le") if hasattr(inner, name)}
        origin, inside = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            pending.insert(0, (inside[0], inside[1:]))
        elif origin in (Union, types.UnionType):
            pending[:0] = [(part, ()) for part in inside]
        elif annotation is type(None):
            nullable = True
        elif origin in (list, dict):
            kinds.append(origin)
            items += _words_of(inside[0], getattr(inside[0], "__metadata__", ()))
        elif isinstance(annotation, type):
            kinds.append(annotation)
        else:
            raise TypeError(f"{key}: no rule for the annotation {annotation!r}")
    return Field(
        key=key,
        default=info.get_default(call_default_factory=True),
        doc=_with_method_defaults(key, " ".join((info.description or "").split())),
        kinds=tuple(kinds),
        choices=tuple(choices),
        item_choices=tuple(items),
        nullable=nullable,
        lower=bounds.get("gt", bounds.get("ge")),
        lower_open="gt" in bounds,
        upper=bounds.get("lt", bounds.get("le")),
        upper_open="lt" in bounds,
    )
