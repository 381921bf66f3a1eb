"""``ensq db``."""

from __future__ import annotations

from pathlib import Path

import click

from ensq.cli.common import as_json, database, print_json, url_of
from ensq.errors import EXIT_DATABASE


@click.group()
def db() -> None:
    """Check, copy or upgrade the database."""


@db.command()
@click.option("--files", is_flag=True, help="Read all recorded checkpoints and results, too.")
@as_json
@database
def check(db: str | None, json_: bool, files: bool) -> int:
    """Integrity of the file, foreign keys, and the queue's own rules."""
    from ensq.store import checks

    url = url_of(db)
    problems = checks.check(url)
    damaged = checks.check_files(url) if files else []
    sound = not problems and not damaged
    if json_:
        found = {"sound": sound, "problems": problems}
        print_json(found | ({"files": damaged} if files else {}))
    else:
        for problem in [*problems, *damaged]:
            click.echo(problem)
        if problems:
            click.echo(
                "The database is not sound. Stop its workers, keep a copy of it as it is, and go\n"
                "back to a backup; or enqueue the members named above under another --name."
            )
        elif damaged:
            click.echo("The database is sound, but files are missing or damaged.")
        else:
            click.echo("the database is sound" + (", and so are its files" if files else ""))
    return 0 if sound else EXIT_DATABASE


@db.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@database
def backup(file: Path | None, db: str | None) -> None:
    """Copy the database to FILE, also while workers write.

    Without FILE the copy goes beside the database, under its name with .backup added. Nothing is
    ever overwritten. SQLite: to go back to a copy, stop the workers and put the file in the
    database's place. PostgreSQL: the copy is made by pg_dump, and pg_restore goes back to it.
    """
    from ensq.store import backup as copies

    path = copies.backup(url_of(db), file)
    click.echo(f"the copy: {path}")


@db.command()
@click.option("--no-backup", is_flag=True, help="Change the database without copying it first.")
@database
def upgrade(db: str | None, no_backup: bool) -> None:
    """Bring the database to the revision that this ensq needs.

    It is copied first. Refused while workers hold members: whether those of other hosts live is
    watched for the length of their lease.
    """
    from ensq.migrate import create_or_upgrade, current

    url = url_of(db)
    before = create_or_upgrade(url, progress=click.echo, copy_first=not no_backup)
    now = current(url)
    click.echo(f"at revision {now}" + (f", was {before}" if before not in (None, now) else ""))
