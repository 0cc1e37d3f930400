"""What every group of settings is made of: the base class and the types that sections share.

A method's section stands beside the method (`fitune.methods`), the others in `fitune.config.sections`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import CoreSchema, core_schema

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen group of settings; unknown keys and values of another type are errors."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class OneOf:
    """Annotation of a text that is one of some words known at import only: ``Annotated[str, OneOf(tuple(METHODS))]``.

    Faults and JSON schema are those of a `typing.Literal`, which a type checker wants written out.
    """

    words: tuple[str, ...]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.literal_schema(list(self.words))
