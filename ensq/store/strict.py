"""Values from columns, checked: SQLite keeps anything in any column, and a file is anybody's."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, TypeVar

from ensq.errors import DatabaseError

T = TypeVar("T")


def made(kind: type[T], values: Mapping[Any, Any]) -> T:
    """The value of that dataclass. Raises DatabaseError if a field is of another type."""
    found = dict(values)
    for name, (allowed, choices) in _fields(typing.cast(Any, kind)).items():
        value = found.get(name)
        if name not in found or type(value) in allowed:
            continue
        try:
            if choices is None or not isinstance(value, str):
                raise ValueError(name)
            found[name] = choices(value)
        except ValueError as error:
            shown = repr(value)
            raise DatabaseError(
                f"the database holds {shown if len(shown) < 60 else shown[:57] + '…'} as {name} of "
                f"{_named(kind)}, which ensq can't have written: it was changed or is damaged; see "
                "`ensq db check`, and go back to a backup"
            ) from error
    return kind(**found)


def _named(kind: type[Any]) -> str:
    name = kind.__name__.lower()
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


@functools.cache
def _fields(kind: type[Any]) -> dict[str, tuple[frozenset[type], type[StrEnum] | None]]:
    """The types that each field takes, and the enumeration that its text stands for."""
    fields = {}
    for name, hint in typing.get_type_hints(kind).items():
        union = isinstance(hint, types.UnionType)
        allowed = set(typing.get_args(hint) if union else (hint,))
        if float in allowed:
            allowed.add(int)
        choices = next((one for one in allowed if issubclass(one, StrEnum)), None)
        fields[name] = (frozenset(allowed), choices)
    return fields
