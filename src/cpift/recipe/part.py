"""What all parts of a recipe have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationInfo

CONFIG = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
"""No unknown keys, no change after it was read."""


def no_truth_for_a_number(cls: type[BaseModel], value: object, info: ValidationInfo) -> object:
    """Refuse true and false where a number or text is meant; a validator of all fields."""
    if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
        raise ValueError(f"is {str(value).lower()}, where a number or text is meant")
    return value
