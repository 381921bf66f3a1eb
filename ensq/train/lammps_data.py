"""LAMMPS data files of chains, with all bonds, angles and dihedrals that their priors need."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq import __version__
from ensq import config as configuration
from ensq.data import Data
from ensq.masses import RESIDUES
from ensq.train.checkpoint import MemberResult
from ensq.train.lammps import Kinds, kinds_of

MARGIN = 50.0  # Angstrom of empty space around the molecule of a data file


def system_files(result: MemberResult, stem: str, frames: Data) -> dict[str, str]:
    """A LAMMPS data file for every different chain among the frames, by name.

    One chain: ``<stem>_system.data``; more: with the protein's name or a number.
    """
    config = configuration.loads(result.config)
    kinds = kinds_of(config.model, result.params["priors"], len(result.species_names), "")
    firsts: dict[tuple[Any, ...], int] = {}
    for frame in range(frames.n_frames):
        key = (frames.mask[frame].tobytes(), frames.species[frame].tobytes())
        firsts.setdefault(key, frame)
    places = list(firsts.values())
    labels = [f"_{name}" for name in _labels(frames, places)] if len(places) > 1 else [""]
    return {
        f"{stem}{label}_system.data": data_file(
            kinds,
            frames.R[frame],
            frames.species[frame],
            frames.mask[frame],
            result.species_names,
        )
        for label, frame in zip(labels, places, strict=True)
    }


def _labels(frames: Data, places: Sequence[int]) -> list[str]:
    """A different label for each: the protein's name if that says enough, else a number."""
    names = []
    if frames.protein is not None and frames.protein_names:
        names = [frames.protein_names[int(frames.protein[place])] for place in places]
    safe = ["".join(c if c.isalnum() or c in "-+." else "-" for c in name) for name in names]
    if safe and len(set(safe)) == len(safe):
        return safe
    return [str(number) for number in range(1, len(places) + 1)]


def data_file(
    kinds: Kinds,
    position: NDArray[Any],
    species: NDArray[Any],
    real: NDArray[np.bool_],
    species_names: tuple[str, ...],
) -> str:
    """One chain as a LAMMPS data file of atom style molecular, with all bonds that its priors need.

    position [N,3]; species and real [N]; beads that are not real end the chain, as they do for
    ``ChainPriors``.
    """
    number = np.cumsum(real)  # of each real bead, from 1
    sections = _topology(kinds, species, real)
    types: dict[str, tuple[Any, ...]] = {
        "atom": species_names,
        "bond": kinds.bonds,
        "angle": kinds.angles,
        "dihedral": kinds.dihedrals,
    }
    lines = [
        f"A chain with its priors' topology, by ensq {__version__}",
        "",
        f"{int(real.sum())} atoms",
        *(f"{len(rows)} {name.lower()}" for name, rows in sections.items()),
        *(f"{len(every)} {name} types" for name, every in types.items()),
        "",
        *_box(position[real]),
        "",
        "Masses",
        "",
        *_masses(species_names),
        "",
        "Atoms  # molecular",
        "",
        *(
            f"{number[i]} 1 {int(species[i]) + 1} " + " ".join(f"{x:.9g}" for x in position[i])
            for i in np.flatnonzero(real)
        ),
    ]
    for name, rows in sections.items():
        if rows:
            lines += ["", name, ""]
            lines += [
                " ".join(map(str, (row, kind, *(number[bead] for bead in beads))))
                for row, (kind, *beads) in enumerate(rows, 1)
            ]
    return "\n".join(lines) + "\n"


def _topology(
    kinds: Kinds, species: NDArray[Any], real: NDArray[np.bool_]
) -> dict[str, list[tuple[int, ...]]]:
    """The type, and the beads from 0, of every bond, angle and dihedral."""
    n = len(real)

    def runs(size: int) -> Iterator[tuple[int, ...]]:
        for i in range(n - size + 1):
            if real[i : i + size].all():
                yield tuple(range(i, i + size))

    bonds: list[tuple[int, ...]] = [
        (number, i, j)
        for number, kind in enumerate(kinds.bonds, 1)
        for i, j in itertools.combinations(np.flatnonzero(real).tolist(), 2)
        if kind.nearest <= j - i <= (kind.farthest or n)
    ]
    by_species = len(kinds.angles) > 1
    angles: list[tuple[int, ...]] = [
        (int(species[run[1]]) + 1 if by_species else 1, *run)
        for run in (runs(3) if kinds.angles else ())
    ]
    dihedrals: list[tuple[int, ...]] = [(1, *run) for run in (runs(4) if kinds.dihedrals else ())]
    return {"Bonds": bonds, "Angles": angles, "Dihedrals": dihedrals}


def _box(position: NDArray[Any]) -> Iterator[str]:
    low, high = position.min(axis=0) - MARGIN, position.max(axis=0) + MARGIN
    for axis, a, b in zip("xyz", low, high, strict=True):
        yield f"{a:.4f} {b:.4f} {axis}lo {axis}hi"


def _masses(names: tuple[str, ...]) -> Iterator[str]:
    for number, name in enumerate(names, 1):
        mass = RESIDUES.get(name.upper())
        if mass is None:
            yield f"{number} 1.0  # {name}: not known to ensq, set its mass here"
        else:
            yield f"{number} {mass}  # {name}"
