"""What every group of settings is made of: the base class and the types that sections share.

A method's section stands beside the method (`fitune.methods`), the others in `fitune.config.sections`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fitune.earlier_names import new_name, section_with_new_names, tell
from fitune.errors import SettingsError

PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen group of settings; unknown keys and values of another type are errors.

    The class of the section ``rl`` is called ``RlSettings``; by this the earlier names of its settings are found.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _accept_earlier_names(cls, given: Any) -> Any:
        """Values of a call or of another program's dict, by today's names."""
        if not isinstance(given, dict):
            return given
        try:
            return section_with_new_names(cls._section(), given)
        except SettingsError as error:
            raise ValueError(error.faults[0]) from error

    @classmethod
    def _section(cls) -> str:
        return cls.__name__.removesuffix("Settings").lower()

    if not TYPE_CHECKING:  # a checker would take any attribute for one that is there

        def __getattr__(self, name: str) -> Any:
            """The value of a setting that is read by its earlier name."""
            key = f"{self._section()}.{name}"
            if (new := new_name(key)) == key:
                return super().__getattr__(name)
            tell(key, key)
            return getattr(self, new.rpartition(".")[2])
