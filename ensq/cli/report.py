"""``ensq report``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensq.cli.common import database, db_hint, only_ensemble, url_of

if TYPE_CHECKING:
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
@database
def report(name: str | None, output: Path | None, db: str | None) -> None:
    """A page of HTML about an ensemble, also while it is being trained.

    One file that needs no network: summary, loss curves, members, errors, who trained what, and the
    configuration. Its figures (PNG) and their numbers (CSV) are written beside it.
    """
    from ensq.report import build

    known, steps = _look(name, db)
    path = build.default_path(known) if output is None else output.absolute()
    made = build.make(known, steps, path.stem, lambda text: click.echo(f"{text} …", err=True))
    written = build.write(made, path, own=output is None)
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    click.echo(f"wrote {shown}")
    click.echo(f"{len(written) - 1} files of figures and numbers beside it")


def _look(name: str | None, db: str | None) -> tuple[Known, list[Content]]:
    """The ensemble, and what its user would type next."""
    from ensq import exports
    from ensq.report import known

    if name is not None and ("/" in name or (Path(name) / exports.METADATA).exists()):
        return known.from_folder(Path(name)), []
    from ensq.cli.status import next_step
    from ensq.store import Store

    with Store.open(url_of(db), read_only=True) as store:
        ensemble = only_ensemble(store, name)
        found = known.from_store(store, ensemble)
        if found.exported is not None and len(found.finished) == len(found.members):
            return found, []
        return found, [_with_code(next_step(ensemble, store.jobs(ensemble.id), db_hint(db)))]


def _with_code(text: str) -> Content:
    """A sentence whose commands, between backticks, are set as such."""
    from ensq.report import html

    parts = text.split("`")
    return html.join(html.code(part) if place % 2 else part for place, part in enumerate(parts))
