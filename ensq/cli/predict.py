"""``ensq predict``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensq.cli.common import as_json, database, print_json, url_of
from ensq.cli.reading import (
    ENERGIES,
    LENGTHS,
    advice_of_options,
    keys_of,
    reading_options,
    units_of,
)

if TYPE_CHECKING:
    from ensq.predicted.running import Done, Options

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("model", metavar="NAME|FOLDER")
@click.argument("data", type=_PATH)
@click.option("-o", "--output", type=_PATH, help="Predictions: .npz, .h5 or .extxyz.")
@click.option("--members", is_flag=True, help="Write the predictions of all members, too.")
@click.option(
    "--ddof",
    type=click.Choice(["0", "1"]),
    default="0",
    show_default=True,
    help="Standard deviations divide by the number of members less this.",
)
@click.option(
    "--model-devi",
    type=_PATH,
    metavar="FILE",
    help="Write model deviations in DeePMD's columns, in eV and eV/Angstrom.",
)
@click.option(
    "--select",
    type=click.IntRange(1),
    metavar="N",
    help="Write the N most uncertain frames of DATA to -o (.npz or .extxyz), labels included.",
)
@click.option(
    "--by",
    type=click.Choice(["max", "mean", "energy"]),
    default="max",
    show_default=True,
    help="For --select: the largest epsilon of a bead, the mean of all beads, or the standard "
    "deviation of the energy per bead.",
)
@click.option(
    "--apart",
    type=click.IntRange(1),
    default=1,
    metavar="K",
    help="For --select: at least K frames of a trajectory between two that are taken.",
)
@reading_options
@click.option(
    "--energy-unit", type=click.Choice(ENERGIES), help="Of the output. Default: the run's."
)
@click.option(
    "--length-unit",
    type=click.Choice(LENGTHS),
    default="Angstrom",
    show_default=True,
    help="Of the output: forces are in energy per this.",
)
@click.option(
    "--calibrated",
    type=click.Choice(["global", "imbalzano", "noise"]),
    is_flag=False,
    flag_value="global",
    help="Scale spreads by the factors that `ensq evaluate --store` has fitted. Alone: global.",
)
@click.option("--batch", type=click.IntRange(1), metavar="N", help="Frames at once.")
@click.option("--force", is_flag=True, help="Replace files that are there already.")
@as_json
@database
def predict(
    model: str,
    data: Path,
    output: Path | None,
    members: bool,
    ddof: str,
    model_devi: Path | None,
    select: int | None,
    by: Any,
    apart: int,
    units: str | None,
    keys: tuple[str, ...],
    energy_unit: str | None,
    length_unit: str,
    calibrated: str | None,
    batch: int | None,
    force: bool,
    json_: bool,
    db: str | None,
) -> None:
    """Energies and forces of DATA by all members: means and spreads.

    NAME is a run in the database, FOLDER what `ensq finalize` wrote, which needs no database. DATA
    is what data.path may name; it needs no labels. Without -o only a summary is printed.
    """
    from ensq.predicted.running import Options

    options = Options(
        output=output,
        model_devi=model_devi,
        select=select,
        by=by,
        apart=apart,
        members=members,
        ddof=int(ddof),
        energy_unit=energy_unit,
        length_unit=length_unit,
        units=units_of(units),
        keys=keys_of(keys),
        batch=batch,
        calibrated=calibrated,
        force=force,
    )
    began = time.monotonic()
    done = _run(model, data, options, db)
    seconds = time.monotonic() - began
    if json_:
        print_json({**told(done, options), "seconds": seconds})
        return
    for line in lines(done, options):
        click.echo(line)


def _run(model: str, data: Path, options: Options, db: str | None) -> Done:
    from ensq.cli.data import Ticker
    from ensq.ensemble import LoadedEnsemble
    from ensq.predicted.running import run
    from ensq.trained import find

    with Ticker() as ticker:
        ticker.say("reading the members and the data", 0, 0)
        ensemble = LoadedEnsemble(find(model, url_of(db)))
        with advice_of_options():
            return run(
                ensemble, data, options, lambda done, total: ticker.say("predicted", done, total)
            )


# -- what is shown -----------------------------------------------------------------------------


def lines(done: Done, options: Options) -> list[str]:
    """The summary for people."""
    from ensq.text import counted, ranges, table

    about = done.about
    few, most = done.beads
    beads = f"{most}" if few == most else f"{few} to {most}"
    text = [
        f"{about.ensemble}: {counted(done.members, 'member')}, "
        f"{'seed' if done.members == 1 else 'seeds'} {ranges(about.seeds)}",
        f"{done.source}: {counted(done.per_frame.frames, 'frame')} of {beads} beads",
    ]
    if done.members == 1:
        text += [
            "one member has no spread: there are no standard deviations and no epsilon;",
            "train more seeds",
        ]
    else:
        how = f"standard deviations with ddof {about.ddof}, epsilon with 0"
        if about.calibration is not None:
            how = f"calibrated: {about.calibration}"
        text += [
            f"spread over the members ({how}),",
            f"energies in {about.energy_unit}, epsilon in {about.force_unit}:",
        ]
        text += table(("", "median", "mean", "95 %", "99 %", "max", "frame"), _rows(done), (0,))
        if not about.energies_trained:
            text += [
                "energies were not trained (gammas.U is 0): those of each member have a constant",
                "of their own, and their spread is that of the constants above all",
            ]
    text += _picked(done, options)
    text += [f"wrote {path}" for path in done.written]
    return text


def _rows(done: Done) -> list[list[str]]:
    names = {
        "energy_std": "energy",
        "energy_std_per_bead": "energy per bead",
        "epsilon_max": "largest epsilon",
        "epsilon_mean": "mean epsilon",
    }
    rows = []
    for key, found in done.per_frame.summary().items():
        values = [f"{found[which]:#.3g}" for which in ("q50", "mean", "q95", "q99", "max")]
        rows.append([names[key], *values, str(found["max_frame"])])
    return rows


def _picked(done: Done, options: Options) -> list[str]:
    """What was selected, and whether that is fewer than was asked for."""
    from ensq.text import counted, wrapped

    if done.picked is None or options.select is None:
        return []
    what = {"max": "largest epsilon", "mean": "mean epsilon", "energy": "energy per bead"}
    least = done.per_frame.uncertainty(options.by)[done.picked].min()
    unit = done.about.energy_unit if options.by == "energy" else done.about.force_unit
    text = f"selected {counted(len(done.picked), 'frame')} by {what[options.by]}"
    text += f": {least:#.3g} {unit} or more"
    if options.apart > 1:
        text += f", at least {options.apart} frames apart"
    if len(done.picked) < options.select:
        text += f"; there are no more, of {options.select} that were asked for"
    if options.output is None:
        text += "; not written: -o picked.npz keeps them, --json tells their numbers"
    return wrapped(text)


def told(done: Done, options: Options) -> dict[str, Any]:
    """The same for programs."""
    spread = done.members > 1
    return {
        **done.about.plain(),
        "seeds": list(done.about.seeds),
        "member_digests": list(done.about.digests),
        "data": done.source,
        "frames": done.per_frame.frames,
        "beads": list(done.beads),
        "spread": done.per_frame.summary() if spread else None,
        "selected": None if done.picked is None else done.picked.tolist(),
        "selected_by": options.by if done.picked is not None else None,
        "files": [str(path) for path in done.written],
    }
