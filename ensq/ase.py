"""An ASE calculator of an ensemble: mean energy and forces, and how far the members are apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from numpy.typing import NDArray

from ensq import frames as framing
from ensq import prediction
from ensq.ensemble import LoadedEnsemble, load_ensemble
from ensq.errors import EnsqError, UsageError
from ensq.prediction import Prediction

PLAIN = ("energy", "free_energy", "forces", "stress")
SPREAD = ("energy_std", "forces_std", "epsilon")
SKIN = 0.5  # Angstrom


class UncertaintyExceeded(EnsqError):
    """The members are further apart than the threshold: the frame is not one they know.

    ``atoms`` is the frame with its energy, forces and spreads, ``epsilon`` [N] in eV/Angstrom,
    ``value`` what was held against ``threshold``, ``evaluation`` how many frames came before.
    """

    def __init__(self, atoms: Atoms, value: float, threshold: float, by: str) -> None:
        self.atoms, self.value, self.threshold = atoms, value, threshold
        self.epsilon: NDArray[Any] = atoms.arrays["epsilon"]
        self.evaluation = int(atoms.info["evaluation"])
        bead = int(np.argmax(self.epsilon))
        what = f"epsilon of bead {bead}" if by == "max" else "the mean epsilon of the beads"
        super().__init__(
            f"evaluation {self.evaluation}: {what} is {value:.4g} eV/Angstrom, over the threshold "
            f"of {threshold:g}: the members disagree here; the frame is kept (calculator.recorded)"
        )


class EnsembleCalculator(Calculator):
    """Results in eV and Angstrom, whatever the run's unit.

    ``energy``, ``free_energy`` (the same), ``forces``: means over the members. ``stress``: of the
    mean energy, where all directions are periodic. ``energy_std``, ``forces_std`` [N,3]: standard
    deviations over the members with ``ddof``; ``epsilon`` [N]: sqrt(mean |F - <F>|^2) of each bead.
    A single member has none of these three.
    """

    implemented_properties = [*PLAIN, *SPREAD]  # noqa: RUF012  # as ASE declares it
    name = "ensq"

    def __init__(
        self,
        ensemble: LoadedEnsemble | str | Path,
        *,
        threshold: float | None = None,
        by: Literal["max", "mean"] = "max",
        on_exceed: Literal["stop", "record"] | Callable[[Atoms], object] = "stop",
        record: str | Path | None = None,
        interval: int = 1,
        species: str | Sequence[Any] | None = None,
        ddof: int = 0,
        calibrated: str | None = None,
        skin: float = SKIN,
    ) -> None:
        """
        Args:
            ensemble: A loaded one, or what ``load_ensemble`` takes.
            threshold: Of epsilon in eV/Angstrom, over the beads as ``by`` says: above it the frame
                is kept in ``recorded``, and ``on_exceed`` happens. None: none.
            by: The largest epsilon of a bead, or the mean of all.
            on_exceed: ``stop`` raises UncertaintyExceeded, ``record`` goes on, a function is called
                with the frame.
            record: An extended XYZ file that kept frames are added to as well.
            interval: Evaluations between two frames that are kept, at least.
            species: Of beads that are no elements: their names, one each, or the array of the
                atoms that has them. None: the first there is of the training's
                ``data.keys.species``, ``bead``, ``beads``, ``resname``, ``residuenames``.
            ddof: 0 or 1.
            calibrated: ``global``, ``imbalzano`` or ``noise``: spreads, also those held against the
                threshold, with the factors that `ensq evaluate --store` has fitted.
            skin: How much further than the model lists of neighbours reach, in Angstrom.

        Raises UsageError for options that can't be meant.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        if not isinstance(ensemble, LoadedEnsemble):
            ensemble = load_ensemble(ensemble)
        self.ensemble, self.threshold, self.by = ensemble, threshold, by
        self.on_exceed, self.record, self.interval = on_exceed, record, interval
        self.species, self.ddof, self.skin = species, ddof, skin
        self.calibrated = calibrated
        self._check()
        self.recorded: list[Atoms] = []
        self.evaluations = 0
        self._last_kept: int | None = None
        self._with_stress = False
        self._kinds: NDArray[Any] | None = None
        self._moving: Any = None
        if len(ensemble) == 1:
            self.implemented_properties = list(PLAIN)

    def _check(self) -> None:
        if self.by not in ("max", "mean"):
            raise UsageError(f"by is {self.by!r}; it must be max or mean")
        if not callable(self.on_exceed) and self.on_exceed not in ("stop", "record"):
            raise UsageError(f"on_exceed is {self.on_exceed!r}: stop, record or a function")
        if self.ddof not in (0, 1):
            raise UsageError(f"ddof is {self.ddof}; it must be 0 or 1")
        if not (self.interval >= 1 and 0 <= self.skin < np.inf):
            raise UsageError("interval must be 1 or more, skin 0 or more")
        if self.calibrated is not None:
            self.ensemble.calibration.check(self.calibrated)
        if self.threshold is None:
            if self.record is not None:
                raise UsageError("record keeps frames over the threshold: give a threshold, too")
            return
        given: Any = self.threshold
        if isinstance(given, str) or not float(given) > 0:
            raise UsageError(f"threshold is {given!r}; it must be a number over 0 (eV/Angstrom)")
        if len(self.ensemble) == 1:
            raise UsageError("one member has no spread, so that there is nothing for a threshold")

    @property
    def programs(self) -> int:
        """How many programs were compiled so far; it stays the same during a simulation."""
        return self.ensemble.predictor.programs()

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Called by ASE. Raises DataError for atoms that the model can't take or whose energy is
        not finite, UncertaintyExceeded."""
        super().calculate(atoms, properties, system_changes)  # type: ignore[no-untyped-call]
        assert self.atoms is not None
        # asked for once, the stress is wanted at every step
        self._with_stress |= "stress" in properties
        cell = framing.cell_of(self.atoms)
        found = self._predict(np.asarray(self.atoms.positions, np.float64), cell)
        self._put(found, cell)
        self.evaluations += 1
        if self.threshold is not None:
            eps = found.epsilon[0]
            value = float(eps.max() if self.by == "max" else eps.mean())
            if value > self.threshold:
                self._exceeded(value)

    def _predict(self, positions: NDArray[Any], cell: NDArray[Any]) -> Prediction:
        """In eV and Angstrom."""
        virial = self._with_stress and bool(cell.any(axis=1).all())
        energies, forces, virials = self._mover()(positions, cell, virial=virial)
        try:
            found = prediction.summarize(
                energies[:, None],
                forces[:, None],
                np.ones((1, len(positions)), bool),
                seeds=self.ensemble.seeds,
                energy_unit=self.ensemble.energy_unit,
                ddof=self.ddof,
                virials=None if virials is None else virials[:, None],
            )
        except ValueError as error:
            raise EnsqError(
                f"evaluation {self.evaluations}: the model gives no finite energy or forces: the "
                "atoms have flown apart or into each other; a smaller time step may help"
            ) from error
        if self.calibrated is not None:
            found = self.ensemble.calibration.apply(found, self.calibrated)
        return found.converted("eV")

    def _mover(self) -> Any:
        """The program for these atoms; another one for others."""
        from ensq.train.moving import Moving

        species = self.species
        if species is None:
            species = self.ensemble.bead_array(self.atoms)
        elements = self.ensemble.elements
        kinds = framing.species_array(self.atoms, elements, species)
        if self._kinds is None or not np.array_equal(kinds, self._kinds):
            whole = framing.from_atoms(
                [self.atoms],
                names=self.ensemble.species_names,
                elements=elements,
                species=species,
            )
            self._kinds = kinds.copy()
            self._moving = Moving(self.ensemble.predictor, whole.species[0], self.skin)
        return self._moving

    def _put(self, found: Prediction, cell: NDArray[Any]) -> None:
        energy = float(found.energy_mean[0])
        self.results = {"energy": energy, "free_energy": energy, "forces": found.forces_mean[0]}
        if found.has_spread:
            self.results |= {
                "energy_std": float(found.energy_std[0]),
                "forces_std": found.forces_std[0],
                "epsilon": found.epsilon[0],
            }
        if found.virial_mean is not None:
            stress = -found.virial_mean[0] / abs(np.linalg.det(cell))
            stress = (stress + stress.T) / 2
            self.results["stress"] = stress[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]

    def _exceeded(self, value: float) -> None:
        assert self.threshold is not None
        evaluation = self.evaluations - 1
        stop = self.on_exceed == "stop"
        last = self._last_kept
        if not stop and last is not None and evaluation - last < self.interval:
            return
        frame = self._frame(evaluation)
        self._last_kept = evaluation
        self.recorded.append(frame)
        if self.record is not None:
            write(self.record, frame, format="extxyz", append=True)
        if stop:
            raise UncertaintyExceeded(frame, value, self.threshold, self.by)
        if callable(self.on_exceed):
            self.on_exceed(frame)

    def _frame(self, evaluation: int) -> Atoms:
        """A copy of the atoms with their results, as an extended XYZ file holds them."""
        assert self.atoms is not None
        frame: Atoms = self.atoms.copy()
        results = self.results
        frame.calc = SinglePointCalculator(  # type: ignore[no-untyped-call]
            frame, energy=results["energy"], forces=results["forces"].copy()
        )
        frame.set_array("forces_std", results["forces_std"].copy())  # type: ignore[no-untyped-call]
        frame.set_array("epsilon", results["epsilon"].copy())  # type: ignore[no-untyped-call]
        frame.info |= {
            "energy_std": results["energy_std"],
            "epsilon_max": float(results["epsilon"].max()),
            "evaluation": evaluation,
        }
        return frame
