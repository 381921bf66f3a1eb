"""``ensq report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensq.cli.common import database, db_hint, only_ensemble, url_of

if TYPE_CHECKING:
    from ensq.dynamics.given import Given
    from ensq.report.html import Content
    from ensq.report.known import Known


@click.command()
@click.argument("name", metavar="NAME|FOLDER", required=False)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The page. Default: analysis/report/report.html in the run's or export folder.",
)
@click.option(
    "--evaluate/--no-evaluate",
    default=True,
    help="Evaluate the validation frames first, if that was not done. Default: yes.",
)
@click.option(
    "--trajectory",
    "trajectories",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A trajectory of LAMMPS, ASE or others, in a format of data.path: its bonds, angles and "
    "dihedrals against those of the data. May be repeated.",
)
@database
def report(
    name: str | None,
    output: Path | None,
    evaluate: bool,
    trajectories: tuple[Path, ...],
    db: str | None,
) -> None:
    """A page of HTML about an ensemble, also while it is being trained.

    One file that needs no network: summary, loss curves, members, errors and their spread,
    dynamics, who trained what, and the configuration. Its figures (PNG) and their numbers (CSV)
    are written beside it.
    """
    from ensq.report import build

    known, steps = _look(name, db)
    if evaluate:
        known = _evaluated(known, db)
    given = _given(known, trajectories, db)
    path = build.default_path(known) if output is None else output.absolute()
    made = build.make(
        known, steps, path.stem, lambda text: click.echo(f"{text} …", err=True), given
    )
    written = build.write(made, path, own=output is None)
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    click.echo(f"wrote {shown}")
    click.echo(f"{len(written) - 1} files of figures and numbers beside it")


def _look(name: str | None, db: str | None) -> tuple[Known, list[Content]]:
    """The ensemble, and what its user would type next."""
    from ensq import trained
    from ensq.report import html, known

    if name is not None and trained.is_folder(name):
        return known.from_folder(Path(name)), []
    from ensq.cli.status import next_step
    from ensq.store import Store

    with Store.open(url_of(db), read_only=True) as store:
        ensemble = only_ensemble(store, name)
        found = known.from_store(store, ensemble)
        if found.exported is not None and len(found.finished) == len(found.members):
            return found, [html.prose(text) for text in _afterwards(found, db_hint(db))]
        return found, [html.prose(next_step(ensemble, store.jobs(ensemble.id), db_hint(db)))]


def _afterwards(known: Known, hint: str) -> list[str]:
    """What is left to do with an ensemble that is trained and exported."""
    from ensq import simulation

    command = f"ensq predict {known.name} data.npz -o predicted.npz{hint}"
    steps = [f"`{command}`: energies and forces of other frames, with the members' spread"]
    if not any(simulation.find(folder) for folder in known.analyses):
        steps.insert(0, f"`ensq simulate {known.name}{hint}`: is it stable in dynamics?")
    return steps


def _given(known: Known, paths: tuple[Path, ...], db: str | None) -> list[Given]:
    """The trajectories, compared with the training's data."""
    if not paths:
        return []
    from ensq.dynamics.given import compared
    from ensq.ensemble import LoadedEnsemble
    from ensq.errors import UsageError
    from ensq.trained import find

    if not known.from_queue:
        raise UsageError(
            "--trajectory: is compared with the training's data, which an export folder does not "
            "have: name the run, where its queue is"
        )
    members = find(known.name, url_of(db))
    assert members.data is not None
    click.echo("comparing trajectories with the data …", err=True)
    return [compared(LoadedEnsemble(members), members.data, path) for path in paths]


def _evaluated(known: Known, db: str | None) -> Known:
    """The same, after an evaluation of the validation frames if that is missing.

    That it can't be made is a note of the report: there is more to say.
    """
    from dataclasses import replace

    from ensq import trained
    from ensq.errors import EnsqError
    from ensq.report import evaluated

    if not known.results or not known.from_queue or evaluated.find(known).validation is not None:
        return known
    try:
        members = trained.find(known.name, url_of(db))
        click.echo("evaluating the validation frames …", err=True)
        evaluated.make(members)
    except EnsqError as error:
        note = f"the validation frames could not be evaluated: {error}"
        return replace(known, notes=(*known.notes, note))
    return known
