"""Evaluate an ensemble on labelled frames: its errors, its spread, and factors for the spread."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ensq import alike, evaluation, resampling
from ensq.calibrating import calibrate
from ensq.calibration import quantities
from ensq.calibration.figures import LEVEL, Resampling
from ensq.calibration.results import CalibrationReport, Quantity
from ensq.calibration.samples import Observed
from ensq.ensemble import LoadedEnsemble
from ensq.errors import DataError, UsageError
from ensq.evaluation import Blocks, Evaluation, Report
from ensq.observing import Loaded, Options, Progress, drawn_blocks, load, predicted

Array = NDArray[Any]

SCATTER = 20_000  # points of a picture
FEW_FRAMES, FEW_BLOCKS = 50, 8


def evaluate(
    ensemble: LoadedEnsemble, options: Options, progress: Progress = lambda what, done, total: None
) -> Report:
    """All figures, and factors if they are asked for.

    Raises:
        UsageError: Options that contradict each other, or no data are known.
        DataError: Frames without labels, too few, or not the model's.
        MismatchError: The run's data have changed; the factors stored are of other members.
    """
    _check(ensemble, options)
    loaded = load(ensemble, options.data, options)
    observed = predicted(ensemble, loaded, options, "predicting", progress)
    if observed.forces is None and observed.energies is None:
        raise DataError(
            f"{loaded.about.path}: has no labels that predictions can be held against"
            + "".join(f"; {note}" for note in _notes(ensemble, loaded, options))
        )
    drawn = drawn_blocks(observed, options)
    report, curves = calibrate(ensemble, options, loaded, observed, progress)
    unit = ensemble.energy_unit
    forces = quantities.of_forces(drawn, observed, f"{unit}/Angstrom")
    energy = quantities.of_energies(drawn, observed, unit)
    made = None if forces is None else forces.quantity
    arrays: dict[str, Array] = {
        "frame_index": observed.frames.index,
        "frame_protein": observed.frames.protein,
        "frame_block": drawn.block,
    }
    for found in (forces, energy):
        arrays |= {} if found is None else found.arrays
    result = Evaluation(
        format=evaluation.FORMAT,
        ensemble=ensemble.members.name,
        seeds=ensemble.seeds,
        members=ensemble.members.digests,
        data=loaded.about,
        energy_unit=unit,
        length_unit="Angstrom",
        ddof=options.ddof,
        resampling=_blocks(drawn, observed, options),
        notes=(
            *_notes(ensemble, loaded, options),
            *_few(drawn, report),
            *_alike(drawn, observed),
            *_left_out(made),
        ),
        forces=made,
        energy=None if energy is None else energy.quantity,
        energy_per_bead=quantities.per_bead(drawn, observed, f"{unit} per bead"),
        calibration=report,
    )
    return Report(result, {**arrays, **_scatter(observed, options.seed), **curves})


def _blocks(drawn: Resampling, observed: Observed, options: Options) -> Blocks:
    shortest, longest = drawn.frames_per_block
    return Blocks(
        level=LEVEL,
        blocks=drawn.count,
        shortest=shortest,
        longest=longest,
        trajectories=int(observed.frames.trajectories.max()) + 1,
        draws=options.draws,
        seed=options.seed,
    )


def _check(ensemble: LoadedEnsemble, options: Options) -> None:
    if options.ddof not in (0, 1):
        raise UsageError(f"ddof is {options.ddof}; it must be 0 or 1")
    if not 0 < options.fraction < 1:
        raise UsageError(f"the fraction for the fit is {options.fraction}; it must be in 0 to 1")
    if options.use_stored and (options.fit or options.calibration):
        raise UsageError("either fit factors or use those that are stored, not both")
    if (options.units or options.keys) and not options.read_as_asked:
        raise UsageError(
            "--units and --key are of a data file: name one (a converted set knows its own)"
        )
    if (options.fit or options.calibration or options.use_stored) and len(ensemble) < 2:
        raise UsageError(f"{ensemble.members.name} has one member, and so no spread to scale")


def _notes(ensemble: LoadedEnsemble, loaded: Loaded, options: Options) -> list[str]:
    """What must be said of the frames and of the energies."""
    first, notes = ensemble.members.results[0], _read_as(options)
    if loaded.about.validation:
        notes.append(
            "the members' best epochs were chosen on these frames: errors are slightly too small"
        )
    elif loaded.about.digest == first.identity.data_digest:
        trained = loaded.about.frames - len(first.validation_index)
        notes.append(
            f"these are the data of the training: up to {trained} of the frames were trained on, "
            "where errors are too small; without a data file the validation frames are used"
        )
    if loaded.frames.F is None:
        notes.append("no forces: the data have none")
    if not ensemble.energies_trained:
        notes.append(
            "no energies: they were not trained (gammas.U is 0), so that the models' are defined "
            "up to a constant"
        )
    elif loaded.frames.U is None:
        notes.append("no energies: the data have none")
    if len(ensemble) < 2:
        notes.append("no uncertainty: a single member has no spread")
    elif len(ensemble) <= 3:
        notes.append(
            f"sigma of {len(ensemble)} members is very noisy: for normal members error^2/sigma^2 "
            "has no finite mean below 4, so the NLL and the global factor hang on few samples"
        )
    return notes


def _read_as(options: Options) -> list[str]:
    """How files were read, if not as those of the training."""
    files = " and ".join(str(path) for path in options.read_as_asked)
    told = [f"{key} from the array {name!r}" for key, name in sorted(options.keys.items())]
    if options.units is not None:
        told.insert(0, f"in {options.units.energy} and {options.units.length}")
    return [f"{files}: read as was asked for, {'; '.join(told)}"] if files else []


def _few(drawn: Resampling, report: CalibrationReport | None) -> list[str]:
    """Where there is too little to believe the figures."""
    notes = []
    if drawn.count < 2:
        notes.append("one block of frames alone: no intervals")
    elif drawn.count < FEW_BLOCKS:
        notes.append(f"only {drawn.count} blocks: the intervals are rough")
    if report is not None and (
        0 < report.fitted_frames < FEW_FRAMES or 0 < report.fitted_blocks < FEW_BLOCKS
    ):
        notes.append(
            f"the factors rest on {report.fitted_frames} frames in {report.fitted_blocks} blocks: "
            "too few to trust them beyond their intervals"
        )
    return notes


def _left_out(forces: Quantity | None) -> list[str]:
    if forces is None or forces.positions:
        return []
    return [f"no errors by position: there are more than {quantities.MOST_POSITIONS} of them"]


def _alike(drawn: Resampling, observed: Observed) -> list[str]:
    """Where blocks that follow each other are correlated, so that intervals are too narrow."""
    if observed.forces is not None:
        squares = observed.forces.member_squares.mean(axis=0) / observed.frames.beads
    else:
        assert observed.energies is not None
        squares = (observed.energies.member_errors**2).mean(axis=0)
    every = np.arange(observed.frames.count)
    means = drawn.sums(squares, every) / drawn.sums(None, every)
    follow = resampling.follows(
        drawn.block, replica=observed.frames.replica, protein=observed.frames.protein
    )
    said = alike.note(alike.correlation([means.tolist()], follow), sum(follow))
    return [] if said is None else [said]


def _scatter(observed: Observed, seed: int) -> dict[str, Array]:
    """At most ``SCATTER`` components of forces, and frames, drawn at random for pictures."""
    found: dict[str, Array] = {}

    def draw(count: int, stream: int) -> Array:
        rng = np.random.default_rng([seed, stream])
        return np.sort(rng.choice(count, min(count, SCATTER), replace=False))

    forces, energies = observed.forces, observed.energies
    if forces is not None:
        chosen = draw(forces.mean.size, 1)
        mean, error = forces.mean.reshape(-1)[chosen], forces.error.reshape(-1)[chosen]
        found |= {
            "scatter_force_predicted": mean,
            "scatter_force_label": (mean.astype(np.float64) - error).astype(np.float32),
            "scatter_force_species": forces.species[chosen // 3],
        }
        if forces.sigma is not None:
            found["scatter_force_sigma"] = forces.sigma.reshape(-1)[chosen]
    if energies is not None:
        chosen = draw(len(energies.mean), 2)
        found |= {
            "scatter_energy_predicted": energies.mean[chosen],
            "scatter_energy_label": (energies.mean - energies.error)[chosen],
        }
        if energies.sigma is not None:
            found["scatter_energy_sigma"] = energies.sigma[chosen]
    return found
