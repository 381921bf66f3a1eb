"""Masses of beads: of residues and chemical elements, or as they are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ensq.errors import UsageError

# Residue masses, g/mol.
RESIDUES = {
    "ALA": 71.08, "ARG": 156.19, "ASN": 114.10, "ASP": 115.09, "CYS": 103.14, "GLN": 128.13,
    "GLU": 129.12, "GLY": 57.05, "HIS": 137.14, "ILE": 113.16, "LEU": 113.16, "LYS": 128.17,
    "MET": 131.19, "PHE": 147.18, "PRO": 97.12, "SER": 87.08, "THR": 101.10, "TRP": 186.21,
    "TYR": 163.18, "VAL": 99.13,
}  # fmt: skip
EVERY = ""  # the name under which a mass for all other species is given


def masses_of(
    names: tuple[str, ...],
    needed: Iterable[int],
    *,
    elements: bool,
    given: Mapping[str, float] | None = None,
) -> list[float]:
    """Masses in unified atomic mass units of all species; 1 for those that are not needed.

    Args:
        names: Of the species.
        needed: Which of them occur.
        elements: The names are symbols of elements (standard atomic weights, as ASE has them);
            else amino acids by their three letters (masses of residues).
        given: By name; that of ``EVERY`` is for all that have none. They go first.

    Raises UsageError for a species without a known mass, or a name that there is not.
    """
    given = dict(given or {})
    every = given.pop(EVERY, None)
    for name, value in given.items():
        if name not in names:
            raise UsageError(f"--mass {name}={value:g}: there is no such species: {list(names)}")
    found = [1.0] * len(names)
    unknown = []
    for number in sorted(set(needed)):
        name = names[number]
        known = _element(name) if elements else RESIDUES.get(name.upper())
        mass = given.get(name, known if every is None else every)
        if mass is None:
            unknown.append(name)
        else:
            found[number] = mass
    if unknown:
        raise UsageError(
            f"no mass is known for {', '.join(unknown[:5])}: --mass {unknown[0]}=VALUE (g/mol) for "
            "each, or --mass VALUE for all"
        )
    return found


def _element(symbol: str) -> float | None:
    from ase.data import atomic_masses, atomic_numbers

    number = atomic_numbers.get(symbol)
    return None if not number else float(atomic_masses[number])
