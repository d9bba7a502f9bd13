"""Base of all settings and options: what each of their values must be."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError

SMALLEST, LARGEST = 1e-30, 1e30
"""Of a real number's size, unless it is 0: networks compute in float32, which ends not far beyond."""


class CheckedModel(BaseModel):
    """Frozen; unknown keys are rejected; numbers are finite, no switches, whole ones fit into 64 bits, real ones into
    float32."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="wrap")
    @classmethod
    def _fits(cls, value: Any, read: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        # Behind this function a strict reader takes no JSON array for a tuple any more.
        found = read(tuple(value) if info.mode == "json" and isinstance(value, list) else value)
        listed = isinstance(found, tuple) and isinstance(value, tuple | list)
        for given, number in zip(value, found, strict=True) if listed else [(value, found)]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if isinstance(given, bool):  # YAML reads yes, no, on and off as these
                raise PydanticCustomError("number_type", "a number is needed, not true or false")
            if isinstance(number, int) and not -(2**63) <= number < 2**63:
                raise ValueError("a whole number must fit into 64 bits")
            if isinstance(number, float) and number and not SMALLEST <= abs(number) <= LARGEST:
                raise ValueError(f"a number that is not 0 must be of a size from {SMALLEST:g} to {LARGEST:g}")
        return found
