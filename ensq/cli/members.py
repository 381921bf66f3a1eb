"""``ensq retry``, ``resume``, ``cancel``, ``hold``, ``release``: what people do to members."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ensq.cli.common import database, only_ensemble, url_of

if TYPE_CHECKING:
    from ensq.store import Store

    Act = Callable[[str, list[int] | None], list[int]]

_seeds = click.option(
    "--seed", "seeds", type=int, multiple=True, help="Only this seed. May be repeated."
)


@click.command()
@click.argument("name", required=False)
@_seeds
@database
def retry(name: str | None, seeds: tuple[int, ...], db: str | None) -> None:
    """Queue failed or cancelled members of NAME again.

    They go on from their checkpoints, with all counts of failures at 0.
    """
    _change(lambda store: store.retry, "retry", "queued again", name, seeds, db)


@click.command()
@click.argument("name", required=False)
@_seeds
@database
def resume(name: str | None, seeds: tuple[int, ...], db: str | None) -> None:
    """Train members of NAME on that were stopped early.

    They go on from where they stopped, to their last epoch; no rule stops them again.
    """
    _change(lambda store: store.resume, "resume", "queued to be trained on", name, seeds, db)


@click.command()
@click.argument("name", required=False)
@_seeds
@database
def cancel(name: str | None, seeds: tuple[int, ...], db: str | None) -> None:
    """Take members of NAME out of the queue; those in training stop within an epoch."""
    _change(lambda store: store.cancel, "cancel", "cancelled", name, seeds, db)


@click.command()
@click.argument("name", required=False)
@_seeds
@database
def hold(name: str | None, seeds: tuple[int, ...], db: str | None) -> None:
    """Keep members of NAME from being trained until `ensq release`.

    Those in training are saved and given back within seconds.
    """
    _change(lambda store: store.hold, "hold", "held", name, seeds, db)


@click.command()
@click.argument("name", required=False)
@_seeds
@database
def release(name: str | None, seeds: tuple[int, ...], db: str | None) -> None:
    """Queue held members of NAME again."""
    _change(lambda store: store.unhold, "release", "released", name, seeds, db)


def _change(
    action: Callable[[Store], Act],
    what: str,
    done: str,
    name: str | None,
    seeds: tuple[int, ...],
    db: str | None,
) -> None:
    from ensq.errors import UsageError
    from ensq.store import Store
    from ensq.text import ranges

    with Store.open(url_of(db)) as store:
        ensemble = only_ensemble(store, name)
        known = {job.seed for job in store.jobs(ensemble.id)}
        unknown = sorted(set(seeds) - known)
        if unknown:
            raise UsageError(
                f"{ensemble.name} has no seed {ranges(unknown)}; its seeds are "
                f"{ranges(sorted(known))}"
            )
        changed = action(store)(ensemble.name, list(seeds) or None)
    click.echo(f"{done}: seeds {ranges(changed)}" if changed else f"nothing to {what}")
