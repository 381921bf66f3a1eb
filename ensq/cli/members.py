"""``ensq retry`` and ``ensq cancel``."""

from __future__ import annotations

import click

from ensq.cli.common import database, only_ensemble, url_of

_seeds = click.option(
    "--seed", "seeds", type=int, multiple=True, help="Only this seed. May be repeated."
)


@click.command()
@click.argument("name", required=False)
@_seeds
@database
def retry(name: str | None, seeds: tuple[int, ...], db: str | None) -> None:
    """Queue failed or cancelled members of NAME again; they go on from their checkpoints."""
    _change("retry", name, seeds, db)


@click.command()
@click.argument("name", required=False)
@_seeds
@database
def cancel(name: str | None, seeds: tuple[int, ...], db: str | None) -> None:
    """Take members of NAME out of the queue; those in training stop within an epoch."""
    _change("cancel", name, seeds, db)


def _change(what: str, name: str | None, seeds: tuple[int, ...], db: str | None) -> None:
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
        act = store.retry if what == "retry" else store.cancel
        changed = act(ensemble.name, list(seeds) or None)
    verb = "queued again" if what == "retry" else "cancelled"
    click.echo(f"{verb}: seeds {ranges(changed)}" if changed else f"nothing to {what}")
