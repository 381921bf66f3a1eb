"""Factors that are kept with an exported ensemble, and predictions with them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from ensq.calibration.factors import HOW, applied
from ensq.calibration.results import CalibrationReport, Factor, Fitted
from ensq.errors import CheckpointError, MismatchError, UsageError
from ensq.prediction import Prediction
from ensq.rundir import write_atomic

FILE = "calibration.json"
FORMAT = "ensq calibration 1"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Factors of one ensemble's spreads, and what they were fitted on."""

    format: str
    ensemble: str
    members: tuple[str, ...]  # SHA-256 of their files
    seeds: tuple[int, ...]
    energy_unit: str
    length_unit: str
    report: CalibrationReport

    @property
    def available(self) -> tuple[str, ...]:
        """The ways that there are factors of, for the forces."""
        return () if self.report.forces is None else tuple(_there(self.report.forces))

    def check(self, how: str) -> None:
        """Raise UsageError unless there are such factors, before anything is computed for them."""
        for fitted, what in ((self.report.forces, "forces"), (self.report.energy, "energies")):
            if fitted is not None:
                _factor(fitted, how, what)

    def apply(self, prediction: Prediction, how: str) -> Prediction:
        """The prediction with calibrated spreads: sqrt(alpha^2 sigma^2 + noise^2).

        ``epsilon`` of a bead becomes the root of its three components' calibrated sigma^2 added
        up, which its |error of F| should have in the mean square: alpha sqrt(M/(M-ddof)) epsilon,
        and with noise sqrt(alpha^2 M/(M-ddof) epsilon^2 + 3 noise^2), for ``ddof`` of the fit.
        ``energy_std`` changes if there is a factor of energies, ``virial_std`` never does. Beads
        without spread get the noise alone, padding stays 0.

        Args:
            prediction: By the same members, in any units and with any ddof.
            how: global, imbalzano or noise.

        Raises:
            UsageError: There is no such factor, with the reason.
            MismatchError: The prediction is by another number of members.
        """
        if prediction.seeds != self.seeds:
            raise MismatchError(
                f"the factors are of the seeds {self.seeds}, the prediction is by "
                f"{prediction.seeds}; run `ensq evaluate --store` for these members"
            )
        forces, energy = self.report.forces, self.report.energy
        if forces is None and energy is None:
            raise UsageError("the stored calibration has no factors")
        found = prediction.converted(self.energy_unit, self.length_unit)
        members = found.n_members
        if forces is not None:
            factor = _factor(forces, how, "forces")
            std = applied(factor, found.forces_std, members=members, ddof=found.ddof)
            epsilon = applied(factor, found.epsilon, members=members, ddof=0, components=3)
            found = replace(
                found,
                forces_std=np.where(found.mask[..., None], std, 0.0),
                epsilon=np.where(found.mask, epsilon, 0.0),
            )
        if energy is not None:
            factor = _factor(energy, how, "energies")
            std = applied(factor, found.energy_std, members=members, ddof=found.ddof)
            found = replace(found, energy_std=std)
        return found.converted(prediction.energy_unit, prediction.length_unit)


def _there(fitted: Fitted) -> dict[str, Factor]:
    return {factor.how: factor for factor in fitted.factors if factor.alpha is not None}


def _factor(fitted: Fitted, how: str, what: str) -> Factor:
    """The factor that is asked for. Raises UsageError."""
    there = _there(fitted)
    if how in there:
        return there[how]
    refused = {factor.how: factor.refused for factor in fitted.factors}
    why = f": {refused[how]}" if refused.get(how) else ""
    raise UsageError(
        f"no factor {how!r} for {what}{why}; there are: {', '.join(there) or 'none'} "
        f"(of {', '.join(HOW)})"
    )


def write(folder: Path, calibration: Calibration) -> Path:
    """Keep factors in an export folder; the same ones give the same bytes."""
    plain = msgspec.to_builtins(calibration)
    text = json.dumps(plain, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomic(folder / FILE, text.encode())
    return folder / FILE


def read(folder: Path, digests: tuple[str, ...]) -> Calibration:
    """The factors of an export folder.

    Args:
        folder: Which.
        digests: SHA-256 of the members' files, in their order.

    Raises:
        UsageError: There are none.
        CheckpointError: The file is damaged.
        MismatchError: They are of other members.
    """
    path = folder / FILE
    if not path.exists():
        raise UsageError(
            f"{folder}: has no factors yet ({FILE}); `ensq evaluate {folder} DATA --store` fits "
            "and keeps them"
        )
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Calibration)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged: {error}; fit the factors again: `ensq evaluate --store`"
        ) from error
    if found.format != FORMAT:
        raise CheckpointError(
            f"{path}: is in the format {found.format!r}, not {FORMAT!r}; fit the factors again: "
            "`ensq evaluate --store`"
        )
    if found.members != tuple(digests):
        raise MismatchError(
            f"{path}: the factors are of other members (seeds "
            f"{', '.join(map(str, found.seeds))}); fit them again: `ensq evaluate --store`"
        )
    return found
