"""Bring a database to the schema of this ensq. Alembic is imported only when one is upgraded."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from sqlalchemy import Connection

import ensq
from ensq import schema
from ensq.errors import DatabaseError, MismatchError
from ensq.store import opening
from ensq.store.engine import Database
from ensq.store.target import Target


def current(url: str | PathLike[str]) -> str | None:
    """The revision of the database; None if there is none yet, or an empty one.

    Raises DatabaseError if it can't be read or is another program's.
    """
    return opening.look(Target.parse(url))[1]


def create_or_upgrade(url: str | PathLike[str]) -> str | None:
    """Make the database, or bring an older one to this revision; returns the revision before.

    None is returned for a database that was made; ``schema.REVISION`` where nothing was to do.
    All happens in one transaction, or nothing. Raises DatabaseError as ``current`` does and where
    the file can't be written, MismatchError for a newer database or an unknown revision.
    """
    target = Target.parse(url)
    found, revision = opening.look(target)
    if found is not opening.Found.ENSQ:
        opening.make(target)
        return None
    if revision == schema.REVISION:
        return revision
    database = Database(target, foreign_keys=False)
    try:
        with database.write() as connection:
            # Looked at again: another process may have been faster.
            _, revision = opening.inspect_tables(connection, target)
            if revision is None or not revision.isdigit() or revision > schema.REVISION:
                opening.require_revision(revision, target)
            if revision != schema.REVISION:
                upgrade(connection, target.where)
            return revision
    finally:
        database.close()


def upgrade(connection: Connection, where: str) -> None:
    """Run all migrations that are missing, inside the caller's transaction.

    ``where`` names the database in errors. Raises MismatchError if its revision is not among the
    migrations, DatabaseError if they aren't installed.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    # Percent signs are the configuration's own syntax: a folder may have one in its name.
    config.set_main_option("script_location", str(migrations_folder()).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise MismatchError(f"{where}: can't be upgraded: {error}") from error
    if connection.dialect.name == "sqlite":
        broken = connection.exec_driver_sql("PRAGMA foreign_key_check").first()
        if broken is not None:
            raise DatabaseError(
                f"{where}: can't be upgraded: row {broken[1]} of {broken[0]} would point to a row "
                f"of {broken[2]} that is not there; nothing was changed"
            )


def migrations_folder() -> Path:
    """Where the migrations are: in the installed package, or beside it in a checkout."""
    package = Path(ensq.__file__).resolve().parent
    for folder in (package / "_migrations", package.parent / "migrations"):
        if (folder / "env.py").is_file():
            return folder
    raise DatabaseError(f"the migrations are missing from {package}; install ensq again")
