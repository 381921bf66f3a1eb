"""Bring a database to the schema of this ensq. Alembic is imported only when one is upgraded."""

from __future__ import annotations

import time
from collections.abc import Callable
from os import PathLike
from pathlib import Path

from sqlalchemy import Connection

import ensq
from ensq import schema
from ensq.errors import DatabaseError, DiskError, MismatchError
from ensq.store import backup, opening
from ensq.store.engine import Database
from ensq.store.holders import Holder, Key, holders, require_silent, watch
from ensq.store.target import Target

# Another upgrade, with its copy, may take that long: the second one waits for it.
_PATIENCE = 600.0
# Those of revision 0001: in every database that can be upgraded.
_TABLES = ("alembic_version", "ensembles", "workers", "jobs", "attempts", "epochs", "events")


def current(url: str | PathLike[str]) -> str | None:
    """The revision of the database; None if there is none yet, or an empty one.

    Raises DatabaseError if it can't be read or is another program's.
    """
    return opening.look(Target.parse(url))[1]


def create_or_upgrade(
    url: str | PathLike[str],
    *,
    progress: Callable[[str], None] = lambda line: None,
    copy_first: bool = True,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str | None:
    """Make the database, or bring an older one to this revision; returns the revision before.

    None is returned for a database that was made; ``schema.REVISION`` where nothing was to do.
    All happens in one transaction, or nothing. An older one is copied before it is changed, unless
    ``copy_first`` is False. Members that workers hold are watched for the length of a lease first,
    ``progress`` says so; the rows of dead workers are left to the next claim.

    Raises DatabaseError as ``current`` does and where the file can't be written or copied;
    MismatchError for a newer database or an unknown revision, and if a worker lives.
    """
    target = Target.parse(url)
    found, revision = opening.look(target)
    if found is not opening.Found.ENSQ:
        opening.make(target)
        return None
    if not _is_older(revision, target):
        return revision
    migrations_folder()  # before anybody waits
    database = Database(target, foreign_keys=False, busy_timeout=_PATIENCE)
    try:
        silent = watch(database, progress, monotonic, sleep)
        step = _Step(database, silent, progress if copy_first else None)
        database.run(step)
        return step.revision
    except (DatabaseError, MismatchError):
        # Another upgrade, which changes tables while this one reads, looks like damage or life;
        # but then there is nothing left to do.
        _, revision = opening.look(target)
        if _is_older(revision, target):
            raise
        return revision
    finally:
        database.close()


class _Step:
    """The transaction of an upgrade; done again, it leads to the same."""

    def __init__(
        self, database: Database, silent: dict[Key, Holder], tell: Callable[[str], None] | None
    ) -> None:
        """``tell`` is told where the copy is; without it none is made."""
        self._database = database
        self._silent = silent
        self._tell = tell
        self._copy: Path | None = None
        self.revision: str | None = None  # before the upgrade

    def __call__(self, connection: Connection) -> None:
        target = self._database.target
        _keep_writers_out(connection)
        # Looked at again: another process may have been faster.
        _, revision = opening.inspect_tables(connection, target)
        if not _is_older(revision, target):
            self.revision = self.revision or revision
            return
        self.revision = revision
        require_silent(target, self._silent, holders(connection, target))
        if self._tell is not None:
            if self._copy is not None:
                self._copy.unlink(missing_ok=True)  # of a try that came to nothing
            self._copy = _copy(self._database, f"-{revision}")
            self._tell(f"the database as it was: {self._copy}")
        upgrade(connection, target.where)


def upgrade(connection: Connection, where: str, revision: str = "head") -> None:
    """Run all migrations that are missing up to ``revision``, inside the caller's transaction.

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
        command.upgrade(config, revision)
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


def _is_older(revision: str | None, target: Target) -> bool:
    """Whether there is something to do. Raises MismatchError for a newer database."""
    if revision == schema.REVISION:
        return False
    if revision is None or not revision.isdigit() or revision > schema.REVISION:
        opening.require_revision(revision, target)
    return True


def _keep_writers_out(connection: Connection) -> None:
    """Until the end of the transaction; on SQLite its beginning has done so. Readers may read.

    A second upgrade waits at the first of these tables, whose order is therefore always the same.
    """
    if connection.dialect.name == "postgresql":
        # The copy may take long, and this transaction does nothing meanwhile.
        connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.exec_driver_sql(f"LOCK TABLE {', '.join(_TABLES)} IN EXCLUSIVE MODE")


def _copy(database: Database, suffix: str) -> Path:
    """Copy what is there before the change, over a connection beside the one that keeps it so."""
    try:
        return backup.write(database, backup.usual_path(database.target, suffix), numbered=True)
    except (DatabaseError, DiskError) as error:
        raise type(error)(
            f"{error}. Nothing was changed. Copy the database elsewhere yourself, then run "
            "`ensq db upgrade --no-backup`"
        ) from error
