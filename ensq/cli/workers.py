"""``ensq drain`` and ``ensq reap``: what people do about workers."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from ensq.cli.common import as_json, database, print_json, url_of

if TYPE_CHECKING:
    from ensq.store import Reaped, Store

_LOOK = 1.0  # seconds between looks at silent workers


@click.command()
@click.option("--host", "hosts", multiple=True, help="Only workers on this host. May be repeated.")
@click.option("--worker", "ids", multiple=True, help="Only the worker of this id.")
@database
def drain(hosts: tuple[str, ...], ids: tuple[str, ...], db: str | None) -> None:
    """Ask the workers that run now to finish their epoch and leave.

    Their members go back to the queue with all that was trained. They leave with exit code 0, so
    that batch scripts do not start them again. Workers that start later are not asked; `ensq hold`
    keeps those from claiming.
    """
    from ensq.progress import printable
    from ensq.store import Store

    with Store.open(url_of(db)) as store:
        living = [worker for worker in store.living_workers() if not store.is_gone(worker)]
        chosen = [
            worker
            for worker in living
            if (not hosts or worker.host in hosts) and (not ids or worker.id in ids)
        ]
        asked = set(store.drain([worker.id for worker in chosen]))
    for worker in chosen:
        again = "" if worker.id in asked else " (was asked before)"
        click.echo(printable(f"asked to leave: {worker.id} on {worker.host}{again}"))
    if not chosen:
        click.echo("no worker to ask")


@click.command()
@click.option("--no-wait", is_flag=True, help="Take back only what is lost for sure now.")
@as_json
@database
def reap(no_wait: bool, json_: bool, db: str | None) -> None:
    """Take members back from workers that are lost.

    A worker on this host whose process is gone is lost at once. One of another host is lost if it
    gives no sign of life for the length of its lease: that long this command watches. Workers do
    the same by themselves when they look for work.
    """
    from ensq.store import Store

    with Store.open(url_of(db)) as store:
        reaped = store.reap()
        if not no_wait:
            reaped += _watch(store, quiet=json_)
        names = {ensemble.id: ensemble.name for ensemble in store.ensembles()}
        left = store.outlook().running
    if json_:
        print_json({"taken_back": [_as_json(item, names) for item in reaped], "running": left})
        return
    _print(reaped, names, left)


def _watch(store: Store, *, quiet: bool) -> list[Reaped]:
    """Look again and again until each running member is taken back, or its worker lives."""
    reaped: list[Reaped] = []
    said = False
    while (outlook := store.outlook()).unsure or outlook.lost:
        if outlook.lost:
            reaped += store.reap()
            continue
        if not said and not quiet:
            said = True
            lease = max(job.lease_seconds or 0.0 for job in outlook.unsure)
            click.echo(
                f"{len(outlook.unsure)} running: watching for {lease:.0f} s at most whether "
                "their workers live",
                err=True,
            )
        time.sleep(_LOOK)
    return reaped


def _as_json(item: Reaped, names: dict[int, str]) -> dict[str, object]:
    return {
        "ensemble": names[item.ensemble_id],
        "seed": item.seed,
        "attempt": item.claim.attempt,
        "worker": item.claim.owner,
        "state": str(item.state),
        "reason": item.reason,
    }


def _print(reaped: list[Reaped], names: dict[int, str], left: int) -> None:
    from ensq.progress import printable

    for item in reaped:
        what = f"{names[item.ensemble_id]}: seed {item.seed} is {item.state}"
        click.echo(printable(f"{what}: {item.reason}"))
    if not reaped:
        click.echo("nothing to take back")
    if left:
        click.echo(f"{left} running, with signs of life")
