"""``ensq evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensq.cli.common import as_json, database, print_json, url_of
from ensq.cli.reading import advice_of_options, keys_of, reading_options, units_of
from ensq.errors import UsageError

if TYPE_CHECKING:
    from ensq.evaluation import Report

_file = click.Path(exists=True, path_type=Path)


@click.command()
@click.argument("name", metavar="NAME|FOLDER")
@click.argument("data", required=False, type=_file)
@click.option("--fit", is_flag=True, help="Fit factors for sigma on a part of the frames.")
@click.option(
    "--calibration-fraction",
    "fraction",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="How large a part. Default: 0.2; implies --fit.",
)
@click.option(
    "--calibration",
    type=_file,
    metavar="FILE",
    help="Fit factors on this data file, and judge them on DATA.",
)
@click.option(
    "--noise-by-species", "by_species", is_flag=True, help="A label noise for each species too."
)
@click.option("--store", is_flag=True, help="Keep the factors in the export folder; implies --fit.")
@click.option("--use-stored", is_flag=True, help="Judge the factors that are kept there.")
@click.option(
    "--ddof",
    type=click.IntRange(0, 1),
    default=0,
    show_default=True,
    help="Taken off the number of members in standard deviations.",
)
@click.option(
    "--draws",
    type=click.IntRange(200, 100_000),
    default=2000,
    show_default=True,
    help="Of the bootstrap.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of the draws.")
@click.option("--batch", type=click.IntRange(1), help="Frames at once. Default: as memory allows.")
@reading_options
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="Where the files go. Default: analysis in the run or export folder.",
)
@as_json
@database
def evaluate(
    name: str,
    data: Path | None,
    fit: bool,
    fraction: float | None,
    calibration: Path | None,
    by_species: bool,
    store: bool,
    use_stored: bool,
    ddof: int,
    draws: int,
    seed: int,
    batch: int | None,
    units: str | None,
    keys: tuple[str, ...],
    output: Path | None,
    json_: bool,
    db: str | None,
) -> None:
    """Errors of an ensemble on labelled frames, and how well its spread tells them.

    NAME is a run of the queue, FOLDER an export folder. DATA has frames with forces or energies;
    without it, the run's validation frames are used. Figures have 95 % intervals. Factors turn
    the spread over the members into an uncertainty.
    """
    from ensq import evaluating, evaluation, trained
    from ensq.calibrating import exported
    from ensq.calibrating import store as keep
    from ensq.ensemble import LoadedEnsemble
    from ensq.observing import FRACTION, Options

    if use_stored and store:
        raise UsageError("--use-stored judges factors that are kept already: leave --store out")
    if calibration is not None and (fit or fraction is not None):
        raise UsageError(
            "--calibration names a file for the fit, --fit and --calibration-fraction take a part "
            "of the frames: which is it?"
        )
    fit = fit or fraction is not None or (store and calibration is None)
    ensemble = LoadedEnsemble(trained.find(name, url_of(db)))
    if store:
        exported(ensemble.members)  # before the work
    options = Options(
        data=data,
        fit=fit,
        fraction=FRACTION if fraction is None else fraction,
        calibration=calibration,
        use_stored=use_stored,
        by_species=by_species,
        ddof=ddof,
        draws=draws,
        seed=seed,
        batch=batch,
        units=units_of(units),
        keys=keys_of(keys),
    )
    with advice_of_options():
        report = evaluating.evaluate(ensemble, options, _Progress())
    files = list(evaluation.write(output or ensemble.members.analysis, report))
    if store:
        files.append(keep(ensemble, report))
    _show(report, files, json_)


class _Progress:
    """A line on stderr for each tenth that is done, of what takes longer than a moment."""

    def __init__(self) -> None:
        self.told: tuple[str, int] = ("", 0)

    def __call__(self, what: str, done: int, total: int) -> None:
        tenth = 10 * done // max(1, total)
        if self.told != (what, tenth):
            self.told = (what, tenth)
            click.echo(f"{what}: {done} of {total} frames", err=True)


def _show(report: Report, files: list[Path], json_: bool) -> None:
    from ensq.evaluationtext import lines

    if json_:
        import msgspec

        plain = msgspec.to_builtins(report.evaluation)
        print_json({**plain, "files": [str(path) for path in files]})
        return
    for line in lines(report.evaluation):
        click.echo(line)
    click.echo("files:")
    for path in files:
        click.echo(f"  {path}")
