"""``ensq run``: the whole way on one machine."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensq.cli.common import (
    AUTO,
    as_json,
    database,
    enqueue_options,
    finalize_options,
    overrides_of,
    pack_option,
    url_of,
)

if TYPE_CHECKING:
    from ensq.jobs import Ensemble
    from ensq.local import LocalResult
    from ensq.store import Store


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@enqueue_options
@click.option("--workers", type=click.IntRange(1), help="Local workers. Default: one per core.")
@pack_option
@finalize_options
@as_json
@database
def run(
    config: Path,
    db: str | None,
    name: str | None,
    n_models: int | None,
    overrides: tuple[str, ...],
    workers: int | None,
    pack: int | str,
    export_dir: str | None,
    allow_missing: bool,
    json_: bool,
) -> int:
    """Enqueue CONFIG, train its members with local workers, and finalize.

    Run again after an interruption, it goes on from the last checkpoints.
    """
    from ensq.cli import finalize as finalizing
    from ensq.cli.config import say_notes
    from ensq.cli.enqueue import short_facts, summary
    from ensq.enqueue import check, enqueue
    from ensq.store import Store

    say_notes(config, overrides_of(overrides, n_models))
    checked = check(config, overrides_of(overrides, n_models))
    with Store.open(url_of(db), create=True) as store:
        done = enqueue(store, checked, name)
        for line in [*summary(done), *short_facts(checked)]:
            click.echo(line, err=json_)
        began = time.monotonic()
        code = _train(store, done.ensemble, url_of(db), workers, pack, json_)
        if code is not None:
            _say_trained(store, done.ensemble, code, time.monotonic() - began, json_)
            if code not in (0, 1) or (code == 1 and not allow_missing):
                return code
        from ensq.finalize import finalize

        report = finalize(
            store,
            done.ensemble,
            export_dir=None if export_dir is None else Path(export_dir),
            allow_missing=allow_missing,
            say=lambda text: click.echo(f"{text} …", err=True),
        )
    finalizing.show(report, json_)
    return 0


def _train(
    store: Store, ensemble: Ensemble, url: str, workers: int | None, pack: int | str, json_: bool
) -> int | None:
    """Train what is left with local workers; None if nothing was."""
    from ensq.errors import EXIT_INTERRUPTED, EXIT_OK
    from ensq.jobs import TERMINAL, State
    from ensq.local import LocalOptions, number_of_workers, run_local
    from ensq.progress import Display
    from ensq.rundir import RunDir

    left = [job for job in store.jobs(ensemble.id) if job.state not in TERMINAL]
    if not left:
        return None
    count = workers or number_of_workers(len(left), pack=1 if pack == AUTO else int(pack))
    folder = RunDir.of(store.root, ensemble.run_path)
    noun = "worker" if count == 1 else "workers"
    click.echo(
        f"training with {count} local {noun}; their logs are in {folder.path}/logs", err=json_
    )
    display = Display(sys.stderr if json_ else sys.stdout)
    command = [sys.executable, "-m", "ensq.cli", "worker", "--drain", "--name", ensemble.name]
    # The database goes by the environment: a password must not stand in the process list.
    result = run_local(
        LocalOptions(
            command=[*command, "--pack", str(pack)],
            workers=count,
            log_folder=folder.path / "logs",
            environment={**os.environ, "ENSQ_DB": _absolute(url)},
            tick=lambda: display.update(ensemble, store.jobs(ensemble.id)),
        )
    )
    members = store.jobs(ensemble.id)
    display.close(ensemble, members)
    _show_trouble(result)
    open_ones = [job for job in members if job.state in (State.QUEUED, State.RUNNING)]
    if result.exit_code == EXIT_OK and open_ones:
        return EXIT_INTERRUPTED  # `ensq drain` sent the workers away
    return result.exit_code


def _absolute(url: str) -> str:
    return url if "://" in url else str(Path(url).absolute())


def _say_trained(store: Store, ensemble: Ensemble, code: int, seconds: float, json_: bool) -> None:
    from ensq.errors import EXIT_INTERRUPTED
    from ensq.progress import duration

    if code == EXIT_INTERRUPTED:
        click.echo(
            f"stopped after {duration(seconds)}; all that was trained is kept: the same command "
            "goes on from there",
            err=json_,
        )
    elif code == 1:
        for job in store.jobs(ensemble.id):
            if job.error:
                click.echo(f"seed {job.seed} {job.state}: {job.error}", err=True)
        click.echo(
            f"some members failed; `ensq retry {ensemble.name}` queues them again, "
            "--allow-missing goes on without them",
            err=True,
        )
    elif code == 0:
        click.echo(f"trained in {duration(seconds)}", err=json_)


def _show_trouble(result: LocalResult) -> None:
    """The last lines of the logs of workers that ended badly."""
    for code, log in zip(result.codes, result.logs, strict=True):
        if code in (0, 1, 75):
            continue
        click.echo(f"a worker ended with {code}; the end of {log}:", err=True)
        try:
            last = log.read_text(errors="replace").splitlines()[-5:]
        except OSError:
            last = []
        for line in last:
            click.echo(f"  {line}", err=True)
