"""Options that say how a data file is read, where the training's configuration does not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from ensq.errors import DataError, UsageError

if TYPE_CHECKING:
    from ensq.config.structs import UnitsConfig

ENERGIES = ("kcal/mol", "kJ/mol", "eV", "Hartree")
LENGTHS = ("Angstrom", "nm", "Bohr")
# What the loader's advice is called here, where the configuration is the training's.
_HERE = (
    (r"set data\.units\.length: (\w+)", r"give --units ENERGY,\1"),
    (r"data\.units\.length", "--units"),
    (r"data\.units says", "--units says"),
    (r"write data\.units: \{[^}]*\}", "leave --units out"),
    (r"\(data\.units\)", "(--units)"),
    (r"set data\.keys\.species to it", "give --key species=NAME"),
    (r"(?:say which in |set )?data\.keys\.(\w+)", r"--key \1=NAME"),
)


def reading_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """--units and --key, whose values are for ``units_of`` and ``keys_of``."""
    for add in (
        click.option(
            "--key",
            "keys",
            metavar="R|F|U|species=NAME",
            multiple=True,
            help="What the file calls an array. Default: as the training's data. May be repeated.",
        ),
        click.option(
            "--units",
            metavar="ENERGY,LENGTH",
            help="Of the file, as in eV,Angstrom. Default: those of the training's data.",
        ),
    ):
        command = add(command)
    return command


def units_of(text: str | None) -> UnitsConfig | None:
    """The value of --units.

    Raises UsageError for units that are not known.
    """
    if text is None:
        return None
    from ensq.config.structs import UnitsConfig

    energy, _, length = text.partition(",")
    length = length or "Angstrom"
    if energy not in ENERGIES or length not in LENGTHS:
        raise UsageError(
            f"--units {text}: write one of {', '.join(ENERGIES)}, a comma, and one of "
            f"{', '.join(LENGTHS)}"
        )
    return UnitsConfig(energy=energy, length=length)  # type: ignore[arg-type]


def keys_of(given: tuple[str, ...]) -> dict[str, str]:
    """The values of --key.

    Raises UsageError for what is no KEY=NAME.
    """
    found = {}
    for text in given:
        key, _, name = text.partition("=")
        if key not in ("R", "F", "U", "species") or not name:
            raise UsageError(f"--key {text}: write R=, F=, U= or species= and the array's name")
        found[key] = name
    return found


@contextmanager
def advice_of_options() -> Iterator[None]:
    """Errors of data advise options in place of the configuration's keys."""
    try:
        yield
    except DataError as error:
        text = str(error)
        for theirs, ours in _HERE:
            text = re.sub(theirs, ours, text)
        raise DataError(text) from error
