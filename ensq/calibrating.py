"""Fit factors for an ensemble's spread, judge them on other frames, keep them, find them again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ensq.calibration import factors, quantities, splitting, stored
from ensq.calibration.figures import Resampling
from ensq.calibration.results import CalibrationReport, Factor, Fitted
from ensq.calibration.samples import Observed
from ensq.calibration.stored import Calibration
from ensq.ensemble import LoadedEnsemble
from ensq.errors import DataError, UsageError
from ensq.evaluation import Report
from ensq.observing import Loaded, Options, Progress, drawn_blocks, load, predicted
from ensq.trained import Members

Array = NDArray[Any]


class _Parts(NamedTuple):
    """Frames to fit on and frames to judge on, with what is said of them."""

    fitted: Observed
    judged: Observed
    report: CalibrationReport  # still without factors


def calibrate(
    ensemble: LoadedEnsemble,
    options: Options,
    loaded: Loaded,
    observed: Observed,
    progress: Progress,
) -> tuple[CalibrationReport | None, dict[str, Array]]:
    """Factors with what they are worth, and calibration curves; None if none were asked for."""
    if options.use_stored:
        return _use_stored(ensemble, loaded, observed, options)
    if options.calibration is not None:
        parts = _of_file(ensemble, options, loaded, observed, progress)
    elif options.fit:
        parts = _of_part(options, loaded, observed)
    else:
        return None, {}
    fitting, judging = drawn_blocks(parts.fitted, options), drawn_blocks(parts.judged, options)
    found: dict[str, Fitted] = {}
    curves: dict[str, Array] = {}
    for name, sample_of in _SAMPLES.items():
        sample, rest = sample_of(parts.fitted), sample_of(parts.judged)
        if sample is None:
            continue
        fits = factors.fit(fitting, sample, by_species=options.by_species)
        unit = ensemble.energy_unit + ("/Angstrom" if name == "forces" else "")
        found[name], more = _judged(judging, fits, rest, unit, len(sample.error), name)
        curves |= more
    if not found:
        raise DataError(
            f"{parts.report.fitted_on}: the members do not differ there, or it has no labels: "
            "there is nothing to fit factors to"
        )
    report = replace(
        parts.report,
        fitted_blocks=fitting.count,
        forces=found.get("forces"),
        energy=found.get("energy"),
    )
    return report, curves


_SAMPLES = {"forces": quantities.force_sample, "energy": quantities.energy_sample}


def _judged(
    judging: Resampling,
    fits: tuple[Factor, ...],
    rest: factors.Sample | None,
    unit: str,
    count: int,
    name: str,
) -> tuple[Fitted, dict[str, Array]]:
    if rest is None:
        return Fitted(unit=unit, count=count, factors=fits, judged=()), {}
    judgement = factors.judge(judging, rest, fits)
    curves = {
        f"{name}_curve_observed_{how}": np.asarray(curve.value)
        for how, curve in judgement.curves.items()
    }
    return Fitted(unit=unit, count=count, factors=fits, judged=judgement.judged), curves


def _named(loaded: Loaded) -> str:
    """Frames as they are called where paths may be others' own."""
    name = Path(loaded.about.path).name
    return f"the validation frames of {name}" if loaded.about.validation else name


def _of_file(
    ensemble: LoadedEnsemble,
    options: Options,
    loaded: Loaded,
    observed: Observed,
    progress: Progress,
) -> _Parts:
    """Factors from a file of their own."""
    assert options.calibration is not None
    other = load(ensemble, options.calibration, options)
    if other.about.digest == loaded.about.digest:
        raise UsageError(
            f"{options.calibration}: factors would be fitted on the data that they are judged on; "
            "name another file, or let --calibration-fraction divide this one"
        )
    fitted = predicted(ensemble, other, options, "predicting for the factors", progress)
    report = CalibrationReport(
        fitted_on=options.calibration.name,
        fitted_digest=other.about.digest,
        fitted_frames=other.about.frames,
        fitted_blocks=0,
        gap_frames=0,
        judged_on=_named(loaded),
        judged_frames=loaded.about.frames,
        forces=None,
        energy=None,
    )
    return _Parts(fitted, observed, report)


def _of_part(options: Options, loaded: Loaded, observed: Observed) -> _Parts:
    """Factors from a part of the frames."""
    frames = observed.frames
    try:
        found = splitting.split(frames.count, options.fraction, frames.trajectories, frames.protein)
    except ValueError as error:
        raise DataError(
            f"{loaded.about.path}: {error}; use a file of its own: --calibration"
        ) from error
    report = CalibrationReport(
        fitted_on=f"{found.how} of {_named(loaded)}",
        fitted_digest=loaded.about.digest,
        fitted_frames=len(found.fitted),
        fitted_blocks=0,
        gap_frames=found.gap,
        judged_on="the rest of these frames",
        judged_frames=len(found.judged),
        forces=None,
        energy=None,
    )
    return _Parts(observed.take(found.fitted), observed.take(found.judged), report)


def _use_stored(
    ensemble: LoadedEnsemble, loaded: Loaded, observed: Observed, options: Options
) -> tuple[CalibrationReport, dict[str, Array]]:
    """What the stored factors are worth on all frames that were evaluated."""
    known = read_stored(ensemble.members)
    judging = drawn_blocks(observed, options)
    found: dict[str, Fitted | None] = {}
    curves: dict[str, Array] = {}
    for name, sample_of in _SAMPLES.items():
        fitted: Fitted | None = getattr(known.report, name)
        rest = sample_of(observed)
        if fitted is not None and rest is not None:
            found[name], more = _judged(
                judging, fitted.factors, rest, fitted.unit, fitted.count, name
            )
            curves |= more
        else:
            found[name] = None if fitted is None else replace(fitted, judged=())
    report = replace(
        known.report,
        judged_on=_named(loaded),
        judged_frames=loaded.about.frames,
        forces=found["forces"],
        energy=found["energy"],
    )
    return report, curves


def read_stored(members: Members) -> Calibration:
    """The factors that are kept with the exported members.

    Raises UsageError if there are none, MismatchError if they are of other members.
    """
    return stored.read(exported(members), members.digests)


def exported(members: Members) -> Path:
    """Their export folder. Raises UsageError if there is none."""
    if members.exported is None:
        raise UsageError(
            f"{members.name} has no export folder to keep factors in; run `ensq finalize "
            f"{members.name}` first"
        )
    return members.exported


def store(ensemble: LoadedEnsemble, report: Report) -> Path:
    """Keep the factors of an evaluation with the exported members.

    Raises UsageError if there are no factors, or no export folder.
    """
    found, members = report.evaluation, ensemble.members
    if found.calibration is None:
        raise UsageError("no factors were fitted, so there are none to keep")
    return stored.write(
        exported(members),
        Calibration(
            format=stored.FORMAT,
            ensemble=members.name,
            members=members.digests,
            seeds=members.seeds,
            energy_unit=found.energy_unit,
            length_unit=found.length_unit,
            report=found.calibration,
        ),
    )
