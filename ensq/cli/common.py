"""Options and small steps that several commands share."""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ensq.jobs import Ensemble
    from ensq.store import Store

F = TypeVar("F", bound=Callable[..., Any])
DEFAULT_DB = "ensq.db"
AUTO = "auto"


def pack_size(text: str) -> int | str:
    """How many members train together: a number from 1, or ``auto``."""
    if text == AUTO:
        return AUTO
    if not (text.isascii() and text.isdecimal() and int(text) >= 1):
        raise click.BadParameter(f"{text!r} is neither a number from 1 on nor {AUTO}")
    return int(text)


def pack_option(command: F) -> F:
    """``--pack``."""
    return click.option(
        "--pack",
        type=pack_size,
        default=AUTO,
        show_default=True,
        metavar="N|auto",
        help="Members that a worker trains together as one program. auto: on a GPU as many as "
        "help, which is measured once; on a CPU 1, since a trainer there has one thread.",
    )(command)


def database(command: F) -> F:
    """``--db`` and ``--verbose``."""
    command = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, help="Show tracebacks of errors."
    )(command)
    return click.option(
        "--db",
        metavar="PATH|URL",
        help="The database: a file, or postgresql://user@host/name (the password in ~/.pgpass). "
        "Else $ENSQ_DB, else ensq.db here.",
    )(command)


def as_json(command: F) -> F:
    """``--json``."""
    return click.option("--json", "json_", is_flag=True, help="Print JSON instead of a table.")(
        command
    )


def enqueue_options(command: F) -> F:
    """Options of what is enqueued."""
    for option in (
        click.option(
            "--set",
            "overrides",
            metavar="KEY=VALUE",
            multiple=True,
            help="Override one value, as in training.stages.0.epochs=3. May be repeated.",
        ),
        click.option("--n-models", type=click.IntRange(1), help="Train this many seeds."),
        click.option("--name", help="Name of the ensemble. Default: model_context."),
    ):
        command = option(command)
    return command


def finalize_options(command: F) -> F:
    """Options of the statistics and exports."""
    for option in (
        click.option("--allow-missing", is_flag=True, help="Go on without unfinished members."),
        click.option(
            "--export-dir",
            type=click.Path(file_okay=False),
            help="Where the files go. Default: exported_models in the run folder.",
        ),
    ):
        command = option(command)
    return command


def url_of(db: str | None) -> str:
    """The database that is meant. Raises UsageError for a ``--db`` with a password."""
    if db and "://" in db:
        from ensq.errors import UsageError
        from ensq.store.target import Target

        if Target.parse(db).has_password:
            raise UsageError(
                "--db holds a password, and command lines can be seen by everyone on this host; "
                "leave it out and put it in ~/.pgpass (host:port:database:user:password, "
                "chmod 600) or PGPASSWORD, or give the whole URL in ENSQ_DB"
            )
    return db or os.environ.get("ENSQ_DB") or DEFAULT_DB


def db_hint(db: str | None) -> str:
    """What to add to a suggested command, so that it means the same database.

    ``--db`` holds no password: ``url_of`` refuses one.
    """
    return "" if db is None else f" --db {shlex.quote(db)}"


def only_ensemble(store: Store, name: str | None) -> Ensemble:
    """The named ensemble, or the only one there is. Raises UsageError."""
    from ensq.errors import UsageError

    if name is not None:
        found = store.ensemble(name)
        if found is not None:
            return found
    known = store.ensembles()
    listed = ", ".join(ensemble.name for ensemble in known)
    if not known:
        raise UsageError(
            f"nothing is queued in {store.where}; begin with `ensq enqueue config.yaml`"
        )
    if name is not None:
        raise UsageError(f"no ensemble {name!r} in {store.where}; there are: {listed}")
    if len(known) > 1:
        raise UsageError(f"which ensemble? {store.where} has: {listed}")
    return known[0]


def print_json(value: Any) -> None:
    """JSON for programs, which has no word for NaN and infinity: losses that are such are null."""
    click.echo(json.dumps(without_nan(value), indent=2, allow_nan=False, ensure_ascii=False))


def without_nan(value: Any) -> Any:
    """The same plain values with None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def overrides_of(overrides: tuple[str, ...], n_models: int | None) -> tuple[str, ...]:
    """The overrides, with ``--n-models`` as what it stands for."""
    if n_models is None:
        return overrides
    return (*overrides, "ensemble.enabled=true", f"ensemble.n_models={n_models}")
