"""``ensq worker``."""

from __future__ import annotations

import click

from ensq.cli.common import AUTO, database, pack_option, url_of


@click.command()
@click.option("--name", help="Work on this ensemble only.")
@click.option("--max-jobs", type=click.IntRange(1), help="Leave after that many members.")
@pack_option
@click.option(
    "--share",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="So many workers use one GPU: each takes 0.9/N of its memory.",
)
@click.option(
    "--drain", is_flag=True, help="Stay until every member is ended; take over from the dead."
)
@click.option(
    "--lease",
    type=click.FloatRange(5),
    default=60.0,
    show_default=True,
    help="Seconds without a sign of life after which others may take a member.",
)
@click.option(
    "--margin",
    type=click.FloatRange(1),
    default=60.0,
    show_default=True,
    help="Seconds before SLURM's time limit at which to stop, at most; less where that is enough.",
)
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="P",
    help="One worker that is all P tasks of a SLURM step: for models too large for one node.",
)
@database
def worker(
    db: str | None,
    name: str | None,
    max_jobs: int | None,
    pack: int | str,
    share: int,
    drain: bool,
    lease: float,
    margin: float,
    processes: int,
) -> int:
    """Claim members, train them, record them; until nothing is left to take.

    Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2 and SLURM's time limit finish the step, write checkpoints and
    give the members back. Exit codes: 0 nothing left to do, or sent away by `ensq drain`; 1 members
    failed for good; 69 database; 75 stopped with work left, to be started again; 78 the data are
    not what was enqueued.
    """
    from ensq.worker.processes import run_processes
    from ensq.worker.supervisor import WorkerOptions, run_worker

    size = None if pack == AUTO else int(pack)
    options = WorkerOptions(
        url=url_of(db),
        ensemble=name,
        max_jobs=max_jobs,
        # Who takes several nodes for a member has no room for another one beside it.
        pack=1 if size is None and processes > 1 else size,
        share=share,
        drain=drain,
        lease_seconds=lease,
        deadline_margin=margin,
        ends_process=True,
    )
    return run_worker(options) if processes == 1 else run_processes(options, processes)
