"""One pass over a data set: predictions, written as they come, and what is learned from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import ensq
from ensq import data
from ensq.config.structs import UnitsConfig
from ensq.data import saving
from ensq.ensemble import LoadedEnsemble
from ensq.errors import UsageError
from ensq.outputs import check_outputs, refuse_existing
from ensq.predicted import devi, files, picking
from ensq.predicted.files import About
from ensq.predicted.perframe import Array, Part, PerFrame
from ensq.rundir import write_atomic

By = Literal["max", "mean", "energy"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is wanted of a prediction."""

    output: Path | None = None  # predictions, or the picked frames with ``select``
    model_devi: Path | None = None
    select: int | None = None
    by: By = "max"
    apart: int = 1
    members: bool = False
    ddof: int = 0
    energy_unit: str | None = None  # None: the run's
    length_unit: str = "Angstrom"  # of forces: energy per this
    units: UnitsConfig | None = None  # of the data; None: as the training's data
    keys: dict[str, str] = field(default_factory=dict)
    batch: int | None = None
    calibrated: str | None = None
    force: bool = False

    @property
    def outputs(self) -> dict[str, Path]:
        named = {"-o": self.output, "--model-devi": self.model_devi}
        return {option: path for option, path in named.items() if path is not None}


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was predicted and written."""

    about: About
    members: int
    per_frame: PerFrame  # in the units of ``about``
    beads: tuple[int, int]  # fewest and most in a frame
    picked: Array | None  # frames
    source: str
    written: tuple[Path, ...]


def run(
    ensemble: LoadedEnsemble,
    path: Path,
    options: Options,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Done:
    """Predict for all frames of a data set and write what is wanted.

    Raises UsageError for options that can't be meant, DataError for data that can't be read or
    predicted.
    """
    check(ensemble, path, options)
    source = ensemble.read(path, units=options.units, keys=options.keys)
    about = _about(ensemble, options)
    raw, seen = PerFrame.empty(source.n_frames), PerFrame.empty(source.n_frames)
    plain = ensemble.parts(
        source,
        ddof=options.ddof,
        members=options.members,
        virial=options.model_devi is not None,
        batch=options.batch,
        progress=progress,
    )
    parts = seen.watch(_finished(raw.watch(plain), ensemble, about))
    if options.output is None or options.select is not None:
        for _ in parts:
            pass
    else:
        files.write(options.output, parts, source, about)
    if options.model_devi is not None:
        title = _title(ensemble, path)
        found = devi.population(raw, ensemble.energy_unit, len(ensemble), options.ddof)
        write_atomic(options.model_devi, devi.content(found, title))
    picked = None
    if options.select is not None:
        uncertainty = seen.uncertainty(options.by)
        where = picking.trajectories(source)
        picked = picking.pick(uncertainty, options.select, where, options.apart)
        if options.output is not None:
            saving.save(
                options.output,
                source.take(picked),
                options.units or _units_of(path, ensemble),
                ensemble.config.unit,
                {"source_frame": picked, f"uncertainty_{options.by}": uncertainty[picked]},
            )
    return Done(
        about=about,
        members=len(ensemble),
        per_frame=seen,
        beads=(int(seen.beads.min()), int(seen.beads.max())),
        picked=picked,
        source=str(path),
        written=tuple(options.outputs.values()),
    )


def check(ensemble: LoadedEnsemble, path: Path, options: Options) -> None:
    """Raise UsageError for what would only be noticed after all was computed."""
    check_outputs(path, options.outputs)
    refuse_existing(options.outputs, options.force)
    if options.output is not None:
        if options.select is None:
            files.kind_of(options.output)
        else:
            saving.check_name(options.output)
    if (
        options.output is not None
        and options.select is None
        and files.kind_of(options.output) == "xyz"
        and options.length_unit != "Angstrom"
    ):
        raise UsageError(
            f"-o {options.output}: extended XYZ files are in Angstrom: leave --length-unit out, or "
            "write .npz or .h5"
        )
    if options.select is not None and options.by == "energy" and not ensemble.energies_trained:
        raise UsageError(
            "--by energy: energies were not trained (training.gammas.U is 0), so that the members' "
            "differ by constants of no meaning: use --by max or --by mean"
        )
    if options.select is not None and options.members:
        raise UsageError("--members goes with predictions; with --select frames are written")
    if len(ensemble) > 1 and options.calibrated is not None:
        ensemble.calibration.check(options.calibrated)
    if len(ensemble) == 1:
        needs = [
            option
            for option, wanted in (
                ("--select", options.select is not None),
                ("--model-devi", options.model_devi is not None),
                ("--calibrated", options.calibrated is not None),
            )
            if wanted
        ]
        if needs:
            raise UsageError(
                f"{needs[0]} needs a spread, and {ensemble.members.name} has one trained member, "
                "which has none: train more seeds (ensemble.n_models)"
            )


def _about(ensemble: LoadedEnsemble, options: Options) -> About:
    return About(
        ensemble=ensemble.members.name,
        seeds=ensemble.seeds,
        digests=ensemble.members.digests,
        ddof=options.ddof,
        energy_unit=options.energy_unit or ensemble.energy_unit,
        length_unit=options.length_unit,
        calibration=options.calibrated,
        energies_trained=ensemble.energies_trained,
        version=ensq.__version__,
    )


def _finished(parts: Iterator[Part], ensemble: LoadedEnsemble, about: About) -> Iterator[Part]:
    """Calibrated if that is wanted, and in the units of the output."""
    how = about.calibration
    for index, part in parts:
        found = part if how is None else ensemble.calibration.apply(part, how)
        yield index, found.converted(about.energy_unit, about.length_unit)


def _title(ensemble: LoadedEnsemble, path: Path) -> str:
    """The first line of model deviations."""
    name = "".join(c if c.isprintable() else "?" for c in path.name)
    return (
        f"{name}: {len(ensemble)} members of {ensemble.members.name}; eV and eV/Angstrom, virials "
        "and energies per bead"
    )


def _units_of(path: Path, ensemble: LoadedEnsemble) -> UnitsConfig:
    return data.units_of(path) if data.is_converted(path) else ensemble.config.data.units
