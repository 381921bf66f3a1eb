"""What all parts of the configuration are built from: strict structs and bounded numbers."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
Positive = Annotated[float, Meta(gt=0)]
NonNegative = Annotated[float, Meta(ge=0)]
Fraction = Annotated[float, Meta(gt=0, lt=1)]
# Seeds are 32-bit, so that they mean the same with and without JAX's 64-bit mode.
Seed = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A struct that refuses keys it does not know."""


def finite(**values: float | None) -> None:
    """Raise ValueError for NaN or infinity, which YAML can write as .nan and .inf."""
    for key, value in values.items():
        if value is not None and not math.isfinite(value):
            raise ValueError(f"{key} must be a finite number, not {value}")
