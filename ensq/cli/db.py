"""``ensq db``."""

from __future__ import annotations

import click

from ensq.cli.common import database, url_of
from ensq.errors import EXIT_DATABASE


@click.group()
def db() -> None:
    """Check or upgrade the database."""


@db.command()
@database
def check(db: str | None) -> int:
    """Integrity of the file, foreign keys, and the queue's own rules."""
    from ensq.store import check as look

    problems = look(url_of(db))
    for problem in problems:
        click.echo(problem)
    if problems:
        return EXIT_DATABASE
    click.echo("the database is sound")
    return 0


@db.command()
@database
def upgrade(db: str | None) -> None:
    """Bring the database to the revision that this ensq needs."""
    from ensq.migrate import create_or_upgrade, current

    before = create_or_upgrade(url_of(db))
    now = current(url_of(db))
    click.echo(f"at revision {now}" + (f", was {before}" if before not in (None, now) else ""))
