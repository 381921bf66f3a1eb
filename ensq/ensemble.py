"""A trained ensemble for people's own scripts: ``from ensq import load_ensemble``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ensq import data, prediction, trained
from ensq import frames as framing
from ensq.config import RunConfig
from ensq.config.structs import DataConfig, KeysConfig, UnitsConfig
from ensq.errors import DataError, UsageError
from ensq.masses import EVERY, RESIDUES, masses_of
from ensq.prediction import Prediction
from ensq.trained import Members

if TYPE_CHECKING:
    from ensq.calibration.stored import Calibration
    from ensq.train.predicting import Predictor

Progress = Callable[[int, int], None]
Part = tuple[NDArray[Any], Prediction]  # numbers of frames, and what is predicted for them


def _silent(done: int, total: int) -> None:
    """No progress is told."""


class LoadedEnsemble:
    """All trained members of an ensemble; every prediction is in the run's units."""

    def __init__(self, members: Members, dtype: str = "float32") -> None:
        if dtype not in ("float32", "float64"):
            raise UsageError(f"dtype is {dtype!r}; it must be float32 or float64")
        self.members = members
        self.dtype = dtype

    def __repr__(self) -> str:
        return f"<ensemble {self.members.name}: {len(self)} members, {self.energy_unit}>"

    @property
    def config(self) -> RunConfig:
        return self.members.config

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.members.seeds

    @property
    def species_names(self) -> tuple[str, ...]:
        """Species i of the model has name i."""
        return self.members.species_names

    @property
    def elements(self) -> bool:
        """Whether the species are chemical elements."""
        return bool(self.members.results[0].statistics["elements"])

    @property
    def energies_trained(self) -> bool:
        """Whether the training used energies; else each member's have a constant of their own."""
        return bool(self.config.training.gammas.U)

    @property
    def energy_unit(self) -> str:
        return self.config.unit

    def __len__(self) -> int:
        return len(self.members.results)

    @cached_property
    def predictor(self) -> Predictor:
        """The compiled program of all members; JAX is imported here."""
        from ensq.train.predicting import Predictor

        return Predictor(self.members.results, self.dtype)

    @cached_property
    def calibration(self) -> Calibration:
        """The factors that `ensq evaluate --store` has put into the export folder.

        Raises UsageError if there are none, MismatchError if they are of other members.
        """
        from ensq.calibration import stored

        if len(self) == 1:
            raise UsageError("one member has no spread, so that there is nothing to calibrate")
        if self.members.exported is None:
            raise UsageError(
                f"{self.members.name} has no export, where factors are kept: run `ensq finalize`, "
                "then `ensq evaluate --store`"
            )
        return stored.read(self.members.exported, self.members.digests)

    def member(self, index: int) -> LoadedEnsemble:
        """One member alone, by its place. Raises UsageError if there is none."""
        if not 0 <= index < len(self):
            raise UsageError(f"no member {index}: there are 0 to {len(self) - 1}")
        results, digests = self.members.results[index], self.members.digests[index]
        return LoadedEnsemble(
            replace(self.members, results=(results,), digests=(digests,)), self.dtype
        )

    def calculator(self, **options: Any) -> Any:
        """An ASE calculator; ``ensq.ase.EnsembleCalculator`` tells the options."""
        from ensq.ase import EnsembleCalculator

        return EnsembleCalculator(self, **options)

    def read(
        self,
        path: str | Path,
        *,
        units: UnitsConfig | None = None,
        keys: Mapping[str, str] | None = None,
    ) -> data.Source:
        """Frames of a data file with the model's species; labels need not be there.

        Args:
            path: What `data.path` may name: a file, a folder, a converted set.
            units: Of the file; None: those of the training. A converted set knows its own.
            keys: Names of its arrays R, F, U, species, in place of the training's; labels (F, U)
                that are named must be there.

        Raises DataError, and UsageError for names of a converted set's arrays.
        """
        from ensq.train.predicting import with_species

        own, given = self.config.data, keys or {}
        if data.is_converted(Path(path)):
            units = data.units_of(Path(path)) if units is None else units  # it says so itself
            if given:
                raise UsageError(
                    f"{path}: a converted set has names of its own: leave --key out "
                    "(in Python: keys)"
                )
        named = {key: getattr(own.keys, key) for key in ("R", "F", "U", "species")}
        settings = DataConfig(
            path=str(path),
            units=own.units if units is None else units,
            keys=KeysConfig(**(named | dict(given))),
        )
        found = data.load(Path(path), settings, None, self.config.unit, given)
        return with_species(found, self.species_names, str(path))

    def atoms(self, frames: data.Source | str | Path, index: int = 0) -> Any:
        """A frame as ``ase.Atoms``: of ``read``, or of a data file.

        Beads that are no elements are X, with their names in the array ``bead`` and, where all are
        amino acids, the masses of residues; else their mass is 1: see ``set_masses``.
        """
        from ensq.data.saving import atoms_of

        source = self.read(frames) if isinstance(frames, str | Path) else frames
        if not 0 <= index < source.n_frames:
            raise UsageError(f"no frame {index}: there are 0 to {source.n_frames - 1}")
        atoms = atoms_of(source.take(np.array([index])), 0)
        if not self.elements and all(name.upper() in RESIDUES for name in atoms.arrays["bead"]):
            self.set_masses(atoms)
        return atoms

    def set_masses(self, atoms: Any, masses: Mapping[str, float] | float | None = None) -> None:
        """Give ``ase.Atoms`` the masses that `ensq simulate` takes: ASE has 1 for a bead X.

        Args:
            atoms: With names of beads as the calculator takes them. Momenta are not changed.
            masses: g/mol, by name or one for all; None: of elements and residues.

        Raises UsageError for a species without a known mass, DataError for unknown beads.
        """
        kinds = self._source(atoms).take(np.array([0])).species[0]
        given = {EVERY: masses} if isinstance(masses, int | float) else masses
        found = masses_of(
            self.species_names, np.unique(kinds).tolist(), elements=self.elements, given=given
        )
        atoms.set_masses([found[kind] for kind in kinds])

    def frames(self, R: Any, species: Any, *, mask: Any = None, cell: Any = None) -> data.Data:
        """Frames from arrays in Angstrom; see ``ensq.frames.from_arrays``."""
        return framing.from_arrays(R, species, names=self.species_names, mask=mask, cell=cell)

    def predict(
        self,
        frames: data.Source | str | Path | Sequence[Any],
        *,
        ddof: int = 0,
        members: bool = False,
        virial: bool = False,
        batch: int | None = None,
        calibrated: str | None = None,
        progress: Progress = _silent,
    ) -> Prediction:
        """Means and spreads of energies and forces over the members.

        Args:
            frames: Of ``read`` or ``frames``, the path of a data file, or a list of ``ase.Atoms``
                (one alone will do).
            ddof: Taken off the number of members in standard deviations.
            members: Keep the predictions of all members, too.
            virial: Work out the virials as well.
            batch: Frames at once; None: as memory allows.
            calibrated: ``global``, ``imbalzano`` or ``noise``: with the stored factors.
            progress: Told how many frames are done, and of how many.

        Raises DataError for frames that the model can't take or gives no finite numbers for,
        UsageError for another ``ddof`` than 0 and 1, or if no such factors are stored.
        """
        source = self._source(frames)
        calibration = None if calibrated is None else self.calibration
        parts = self.parts(
            source, ddof=ddof, members=members, virial=virial, batch=batch, progress=progress
        )
        if calibration is not None and calibrated is not None:
            parts = ((index, calibration.apply(part, calibrated)) for index, part in parts)
        return prediction.gather(parts, source.n_frames)

    def parts(
        self,
        source: data.Source,
        *,
        ddof: int = 0,
        members: bool = False,
        virial: bool = False,
        batch: int | None = None,
        progress: Progress = _silent,
    ) -> Iterator[Part]:
        """The same, some frames at a time, in an order that groups frames of similar sizes."""
        if ddof not in (0, 1):
            raise UsageError(f"ddof is {ddof}; it must be 0 or 1")
        for found in self.predictor.batches(source, virial=virial, batch=batch, progress=progress):
            try:
                part = prediction.summarize(
                    found.energies,
                    found.forces,
                    source.mask[found.index],
                    seeds=self.seeds,
                    energy_unit=self.energy_unit,
                    ddof=ddof,
                    virials=found.virials,
                    members=members,
                )
            except ValueError as error:
                raise DataError(_where(found, error)) from error
            yield found.index, part

    def _source(self, frames: Any) -> data.Source:
        if isinstance(frames, str | Path):
            return self.read(frames)
        if isinstance(frames, data.Data | data.Stored):
            return frames
        given = [frames] if hasattr(frames, "get_positions") else list(frames)
        if not given:
            raise DataError("no frames were given")
        if not all(hasattr(one, "get_positions") for one in given):
            raise UsageError(
                "frames to predict are the path of a data file, what `read` or `frames` give, or "
                "a list of ase.Atoms"
            )
        return framing.from_atoms(
            given,
            names=self.species_names,
            elements=self.elements,
            species=self.bead_array(given[0]),
        )

    def bead_array(self, atoms: Any) -> str | None:
        """The array of ``ase.Atoms`` that names species as the training's data did, if there is."""
        key = self.config.data.keys.species
        return key if not self.elements and key in atoms.arrays else None


def _where(found: Any, error: ValueError) -> str:
    """The first frame whose prediction is not finite."""
    finite = np.isfinite(found.energies).all(axis=0) & np.isfinite(found.forces).all(axis=(0, 2, 3))
    if finite.all():
        return str(error)
    return (
        f"frame {found.index[int(np.argmin(finite))]}: the model gives no finite energy or forces; "
        "are two beads at one place, or is the unit of length wrong (data.units)?"
    )


def load_ensemble(
    path: str | Path, *, db: str | None = None, dtype: str = "float32"
) -> LoadedEnsemble:
    """The ensemble of an export folder, or by its name in a database.

    Args:
        path: A folder that `ensq finalize` wrote, or a name.
        db: The database of a name; None: $ENSQ_DB, else ensq.db here.
        dtype: The precision of predictions: float32, that of exported models, or float64.

    Raises UsageError if there is no such folder or name, CheckpointError for damaged files.
    """
    import os

    found = trained.find(str(path), db or os.environ.get("ENSQ_DB") or "ensq.db")
    return LoadedEnsemble(found, dtype)
