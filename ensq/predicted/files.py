"""Files of predictions: NPZ, HDF5, which is written as predictions come, and extended XYZ."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ensq.data import Source, spans
from ensq.data.saving import atoms_of
from ensq.data.xyz import SUFFIXES
from ensq.errors import UsageError
from ensq.predicted.perframe import Array, Part
from ensq.prediction import Prediction, gather
from ensq.rundir import written_beside

HDF5 = (".h5", ".hdf5")
EPSILONS = ("epsilon_max", "epsilon_mean", "epsilon_min")
SPREADS = ("energy_std", "forces_std", "epsilon", *EPSILONS)
OF_ENERGY = ("energy_mean", "energy_std", "energies")


@dataclass(frozen=True, kw_only=True)
class About:
    """What a file says of itself beside its arrays."""

    ensemble: str
    seeds: tuple[int, ...]
    digests: tuple[str, ...]  # SHA-256 of the members' files
    ddof: int
    energy_unit: str
    length_unit: str
    calibration: str | None  # how the spreads were scaled; None: not at all
    # Without, each member's energies have a constant of their own.
    energies_trained: bool
    version: str  # of ensq

    @property
    def force_unit(self) -> str:
        return f"{self.energy_unit}/{self.length_unit}"

    def unit(self, name: str) -> str | None:
        """Of an array."""
        if name in OF_ENERGY:
            return self.energy_unit
        return None if name in ("mask", "species") else self.force_unit

    def plain(self) -> dict[str, Any]:
        """As names and values that any file holds."""
        found: dict[str, Any] = {
            "ensemble": self.ensemble,
            "ddof": self.ddof,
            "energy_unit": self.energy_unit,
            "force_unit": self.force_unit,
            "energies_trained": self.energies_trained,
            "ensq_version": self.version,
        }
        return found if self.calibration is None else found | {"calibration": self.calibration}


def kind_of(path: Path) -> str:
    """``npz``, ``h5`` or ``xyz``. Raises UsageError for another ending."""
    name = path.name.lower()
    if name.endswith(".npz"):
        return "npz"
    if name.endswith(HDF5):
        return "h5"
    if name.endswith(SUFFIXES) and not name.endswith(".gz"):
        return "xyz"
    raise UsageError(f"{path}: predictions go into .npz, .h5 or .extxyz files: name one such")


def write(path: Path, parts: Iterable[Part], source: Source, about: About) -> None:
    """All parts as one file, which is there when it is complete.

    HDF5 is written part by part. The others need all predictions in memory, once.
    """
    kind = kind_of(path)
    with written_beside(path) as beside:
        if kind == "h5":
            _write_h5(beside, parts, source, about)
            return
        whole = gather(parts, source.n_frames)
        if kind == "npz":
            with beside.open("wb") as file:
                np.savez(file, **_npz(whole, source, about))
        else:
            with beside.open("w", encoding="utf-8") as text:
                _write_xyz(text, whole, source, about)


def arrays(part: Prediction) -> dict[str, Array]:
    """What a file holds of some frames; one member has no spreads, so they are not there."""
    names = ["energy_mean", "energy_std", "forces_mean", "forces_std", "epsilon", *EPSILONS]
    if not part.has_spread:
        names = [name for name in names if name not in SPREADS]
    found = {name: getattr(part, name) for name in (*names, "mask", "energies", "forces")}
    return {name: values for name, values in found.items() if values is not None}


def _species(source: Source, frames: Array) -> Array:
    return np.asarray(source.species[frames], np.int32)


def _npz(whole: Prediction, source: Source, about: About) -> dict[str, Any]:
    return {
        **arrays(whole),
        "species": _species(source, np.arange(source.n_frames)),
        "species_names": np.array(source.species_names),
        "seeds": np.array(about.seeds, np.int64),
        "digests": np.array(about.digests),
        **about.plain(),
    }


# -- HDF5 --------------------------------------------------------------------------------------


def _write_h5(path: Path, parts: Iterable[Part], source: Source, about: About) -> None:
    import h5py

    T = source.n_frames
    with h5py.File(path, "w") as file:
        file.attrs.update(about.plain())
        file["seeds"] = np.array(about.seeds, np.int64)
        text = h5py.string_dtype()
        file.create_dataset("digests", data=list(about.digests), dtype=text)
        file.create_dataset("species_names", data=list(source.species_names), dtype=text)
        for index, part in parts:
            found = {**arrays(part), "species": _species(source, index)}
            for name, values in found.items():
                second = name in ("energies", "forces")
                if name not in file:
                    shape = values.shape
                    full = (shape[0], T, *shape[2:]) if second else (T, *shape[1:])
                    made = file.create_dataset(name, full, values.dtype)
                    if (unit := about.unit(name)) is not None:
                        made.attrs["unit"] = unit
                for run, rows in _runs(index):
                    if second:
                        file[name][:, run] = values[:, rows]
                    else:
                        file[name][run] = values[rows]


def _runs(index: Array) -> Iterator[tuple[slice, slice]]:
    """Frames that follow each other, in the file and in the part: each is written at once."""
    starts = np.flatnonzero(np.diff(index, prepend=-2) != 1).tolist()
    for start, stop in zip(starts, [*starts[1:], len(index)], strict=True):
        first = int(index[start])
        yield slice(first, first + stop - start), slice(start, stop)


# -- extended XYZ ------------------------------------------------------------------------------


def _write_xyz(file: IO[str], whole: Prediction, source: Source, about: About) -> None:
    from ase.io.extxyz import write_extxyz

    told = {**about.plain(), "seeds": np.array(about.seeds, np.int64)}
    for span in spans(source.n_beads, source.n_frames):
        index = np.arange(source.n_frames)[span]
        part = source.take(index)
        for row, frame in enumerate(index.tolist()):
            atoms = atoms_of(part, row)
            _put(atoms, whole, frame, np.asarray(part.mask[row], bool))
            atoms.info |= told
            write_extxyz(file, [atoms])


def _put(atoms: Any, whole: Prediction, frame: int, beads: Array) -> None:
    """The predictions of a frame: energy and forces as a calculator's results."""
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms.calc = SinglePointCalculator(  # type: ignore[no-untyped-call]
        atoms, energy=float(whole.energy_mean[frame]), forces=whole.forces_mean[frame][beads]
    )
    if whole.has_spread:
        atoms.set_array("forces_std", whole.forces_std[frame][beads])
        atoms.set_array("epsilon", whole.epsilon[frame][beads])
        eps = whole.epsilon[frame][beads]
        atoms.info |= {
            "energy_std": float(whole.energy_std[frame]),
            "epsilon_max": float(eps.max()),
            "epsilon_mean": float(eps.mean()),
            "epsilon_min": float(eps.min()),
        }
    for place in range(0 if whole.energies is None else whole.n_members):
        assert whole.energies is not None and whole.forces is not None
        atoms.info[f"energy_{whole.seeds[place]}"] = float(whole.energies[place, frame])
        atoms.set_array(f"forces_{whole.seeds[place]}", whole.forces[place, frame][beads])
