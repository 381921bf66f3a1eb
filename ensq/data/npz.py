"""Reading NPZ files: which array is what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

from ensq import npzfile
from ensq.config.structs import KeysConfig
from ensq.data.structs import Raw, short
from ensq.errors import DataError

# ensq's name -> the file's usual ones, best first. If a file has several, the first counts.
USUAL: Mapping[str, tuple[str, ...]] = {
    "R": ("R",),
    "F": ("F",),
    "U": ("U", "E"),
    "species": ("species",),
    "Z": ("Z",),
    "names": ("species_names", "aa_names"),
    "resname": ("resname",),
    "mask": ("mask",),
    "replica": ("replica",),
    "cell": ("cell",),
    "pbc": ("pbc",),
    "protein": ("protein",),
    "protein_names": ("protein_names",),
}
# Names in other people's files. They count where the usual one is absent, and must be unique.
ALIASES: Mapping[str, tuple[str, ...]] = {
    "R": ("coords", "positions", "pos", "conf"),
    "F": ("forces", "force"),
    "U": ("energies", "energy"),
    "Z": ("z", "nuclear_charges", "numbers", "atomic_numbers"),
    "cell": ("lattice", "box"),
}
T = TypeVar("T")
ATOMIC_NUMBERS = (*USUAL["Z"], *ALIASES["Z"])


def read(
    path: Path, keys: KeysConfig, *, labels: bool = True, asked_for: Collection[str] = ()
) -> Raw:
    """The arrays of an NPZ file that ensq uses; all others stay unread.

    Labels that ``keys`` name must be there, or where ``labels`` is False those ``asked_for`` (of F,
    U).
    """
    try:
        with path.open("rb") as file:
            check_kind(path, file.read(8))
            with npzfile.Npz(file) as archive:
                wanted = keys if labels else without_absent(keys, archive.names, asked_for)
                called = called_in(path, archive.names, wanted)
                spare = spare_of(called)
                arrays = {
                    key: asked(path, partial(archive.read, name), key in spare)
                    for key, name in called.items()
                }
                holds = archive.names
    except (OSError, npzfile.Unreadable) as error:
        text = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{path}: not a readable NPZ file: {text}") from error
    found = {key: values for key, values in arrays.items() if values is not None}
    return Raw(path, found, called, holds)


def check_kind(path: Path, start: bytes) -> None:
    """Say so if a file is no ZIP archive, as NPZ files are, nor a NumPy array."""
    if start.startswith(b"PK") or start == b"\x93NUMPY":
        return
    if start.startswith(b"\x93NUMPY"):
        raise DataError(f"{path}: a single array, not an NPZ file with R, F, species")
    if path.suffix.lower() == ".npz":
        what = "not a readable NPZ file: it is no ZIP archive, as numpy.savez writes them"
        raise DataError(f"{path}: {what}" + ("; it is empty" if not start else ""))
    raise DataError(
        f"{path}: not in a format that is read: data.path takes .npz files, extended XYZ files "
        "(.xyz or .extxyz, also with .gz behind), or a folder of them"
    )


def without_absent(
    keys: KeysConfig, holds: Iterable[str], asked_for: Collection[str] = ()
) -> KeysConfig:
    """The names without those of labels that the file has not and nobody ``asked_for``."""
    present = set(holds)
    return KeysConfig(
        R=keys.R,
        F=keys.F if keys.F in present or "F" in asked_for else None,
        U=keys.U if keys.U in present or "U" in asked_for else None,
        species=keys.species,
    )


def called_in(path: Path, holds: tuple[str, ...], keys: KeysConfig) -> dict[str, str]:
    """ensq's names and the file's, of what is there and needed."""
    called = {}
    for key in USUAL:
        name = _find(path, holds, key, getattr(keys, key, None))
        if name is not None:
            called[key] = name
    if keys.species in ATOMIC_NUMBERS:
        called["Z"] = called.pop("species")
        called.pop("names", None)
        called.pop("resname", None)
    # species wins over Z and resname; of these two, species_of chooses by what they hold.
    if "species" in called:
        called.pop("Z", None)
    elif "Z" in called and "resname" not in called:
        called.pop("names", None)
    if "species" in called and "names" in called:
        called.pop("resname", None)
    return called


def _find(path: Path, holds: tuple[str, ...], key: str, chosen: str | None) -> str | None:
    if chosen is not None:
        if chosen not in holds:
            raise DataError(
                f"{path}: data.keys.{key} is {short(chosen)!r}, which the file has not; it has "
                f"{listed(holds)}"
            )
        return chosen
    usual = next((name for name in USUAL[key] if name in holds), None)
    if usual is not None:
        return usual
    others = [name for name in ALIASES.get(key, ()) if name in holds]
    if len(others) > 1:
        setting = "species" if key == "Z" else key
        advice = (
            f"say which in data.keys.{setting}"
            if hasattr(KeysConfig(), setting)
            else f"keep one of them, or name it {key}"
        )
        raise DataError(f"{path}: {' and '.join(others)} could each be {key}: {advice}")
    return others[0] if others else None


def spare_of(called: Mapping[str, str]) -> tuple[str, ...]:
    """What the data can do without."""
    return ("resname", "names") if "Z" in called else ("resname",)


def asked(path: Path, read: Callable[[], T], spare: bool) -> T | None:
    """What is read of an array; None for a pickled one that the data can do without."""
    try:
        return read()
    except npzfile.Pickled as error:
        if spare:
            return None
        raise DataError(
            f"{path}: {error}: store plain numbers or text (dtype=str), frames of different sizes "
            "padded with mask 0"
        ) from error


def listed(names: Iterable[str]) -> str:
    """Names for a message, not more than a line's worth of them."""
    shown = [short(name) for name in names]
    return ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "") if shown else "none"
