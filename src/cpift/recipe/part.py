"""What all parts of a recipe have in common."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator

CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
"""No unknown keys, no change after it was read."""


def no_truth_for_a_number(cls: type[BaseModel], value: object, info: ValidationInfo) -> object:
    """Refuse true and false where a number or text is meant; a validator of all fields."""
    if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
        raise ValueError(f"is {str(value).lower()}, where a number or text is meant")
    return value


class Part(BaseModel):
    """A part of a recipe: no unknown keys, no change after it was read."""

    model_config = CONFIG
    _numbers = field_validator("*", mode="before")(no_truth_for_a_number)


class Trained(Part):
    """A part of a recipe that trains."""

    training: dict[str, Any] = {}
    """Overrides of the common ``training`` for this stage."""
