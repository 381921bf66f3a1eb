"""``ensq submit``."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensq.cli.common import (
    as_json,
    database,
    db_hint,
    enqueue_options,
    overrides_of,
    pack_size,
    url_of,
)

if TYPE_CHECKING:
    from ensq.config.slurm import SlurmConfig
    from ensq.store.target import Target
    from ensq.submit import Submission

_FLAGS = (
    ("--partition", str, "NAME", "Partition, or several with commas."),
    ("--account", str, "NAME", "Account that pays."),
    ("--qos", str, "NAME", "Quality of service."),
    ("--constraint", str, "FEATURES", "Features of nodes."),
    ("--time", str, "TIME", "Time limit, as in 12:00:00."),
    ("--gpus", str, "N|TYPE:N", "GPUs of a worker; 0 for none."),
    ("--cpus", click.IntRange(1), "N", "CPUs of a worker."),
    ("--memory", str, "SIZE", "Memory of a job, as in 16G."),
    ("--workers-per-gpu", click.IntRange(1, 64), "N", "Workers that share a GPU."),
    ("--pack", pack_size, "N|auto", "Members that a worker trains together."),
)


def _flags(command: Any) -> Any:
    for name, kind, metavar, text in reversed(_FLAGS):
        command = click.option(name, type=kind, metavar=metavar, help=text)(command)
    return command


@click.command()
@click.argument("what", metavar="NAME|CONFIG")
@click.option("--workers", type=click.IntRange(1, 1000), help="Submit so many, whatever is open.")
@_flags
@click.option("--extra", multiple=True, metavar="--OPTION=VALUE", help="One more for sbatch.")
@click.option("--dry-run", is_flag=True, help="Print the batch script; do nothing.")
@enqueue_options
@as_json
@database
def submit(
    what: str,
    db: str | None,
    name: str | None,
    n_models: int | None,
    overrides: tuple[str, ...],
    workers: int | None,
    extra: tuple[str, ...],
    dry_run: bool,
    json_: bool,
    **flags: Any,
) -> None:
    """Submit an array of workers to SLURM, for a queued ensemble or a configuration.

    A CONFIG is enqueued first, as by `ensq enqueue`. What SLURM is asked for stands in its section
    `slurm`; options here come before it. There is one worker for each member that is open, less
    those that wait or run already.
    """
    from ensq.store.target import Target

    target = Target.parse(url_of(db))
    asked = _Asked(flags, extra)
    if _is_file(what):
        changes = overrides_of(overrides, n_models)
        found = _of_config(Path(what), target, name, changes, asked, dry_run)
    else:
        found = _of_queue(what, target, name, asked, bool(overrides or n_models))
    planned = _planned(found, target, workers)
    if dry_run:
        _dry_run(planned, json_)
        return
    from ensq.submit import submit as hand_over
    from ensq.submit import write

    if planned.workers:
        write(planned)
        planned = hand_over(planned, target)
    _show(planned, json_, db_hint(db))


@dataclass(frozen=True)
class _Asked:
    """What the command line says in place of the section."""

    flags: dict[str, Any]
    extra: tuple[str, ...]


@dataclass(frozen=True)
class _Found:
    """An ensemble that workers are wanted for."""

    name: str
    settings: SlurmConfig
    open_members: int
    run_path: str


def _is_file(what: str) -> bool:
    return what.endswith((".yaml", ".yml")) or "/" in what or Path(what).is_file()


def _of_config(
    path: Path,
    target: Target,
    name: str | None,
    overrides: tuple[str, ...],
    asked: _Asked,
    dry_run: bool,
) -> _Found:
    from ensq.cli.config import say_notes
    from ensq.cli.enqueue import summary
    from ensq.enqueue import check, enqueue, refuse_other
    from ensq.rundir import check_name
    from ensq.store import Store
    from ensq.submit import members_open

    say_notes(path, overrides)
    checked = check(path, overrides)
    config = checked.config
    name = check_name(name or config.model_context)
    settings = with_flags(config.slurm, asked)  # before anything is written
    if dry_run and not (target.path is None or target.path.exists()):
        return _Found(name, settings, len(config.seeds), f"runs/{name}")
    with Store.open(target.text, create=not dry_run, read_only=dry_run) as store:
        if dry_run:
            ensemble = store.ensemble(name)
            refuse_other(ensemble, checked)
            known = store.jobs(ensemble.id) if ensemble is not None else []
            new = set(config.seeds) - {job.seed for job in known}
            return _Found(name, settings, members_open(known) + len(new), f"runs/{name}")
        done = enqueue(store, checked, name)
        for line in summary(done):
            click.echo(line, err=True)
        count = members_open(store.jobs(done.ensemble.id))
        return _Found(name, settings, count, done.ensemble.run_path)


def _of_queue(what: str, target: Target, name: str | None, asked: _Asked, changed: bool) -> _Found:
    from ensq import config as configuration
    from ensq.cli.common import only_ensemble
    from ensq.errors import UsageError
    from ensq.store import Store
    from ensq.submit import members_open

    if name is not None or changed:
        raise UsageError(
            f"--name, --set and --n-models go with a configuration, and {what!r} is the name of "
            "an ensemble; a file has the ending .yaml"
        )
    with Store.open(target.text, read_only=True) as store:
        ensemble = only_ensemble(store, what)
        settings = with_flags(configuration.loads(ensemble.config).slurm, asked)
        count = members_open(store.jobs(ensemble.id))
        return _Found(ensemble.name, settings, count, ensemble.run_path)


def with_flags(settings: SlurmConfig, asked: _Asked) -> SlurmConfig:
    """The section with what the command line says instead. Raises UsageError."""
    import msgspec

    from ensq.config.slurm import SlurmConfig
    from ensq.errors import UsageError

    given = {name: value for name, value in asked.flags.items() if value is not None}
    gpus = given.get("gpus")
    if isinstance(gpus, str) and gpus.isdecimal():
        given["gpus"] = int(gpus)
    tree = msgspec.to_builtins(settings) | given
    tree["extra"] = [*tree["extra"], *asked.extra]
    try:
        return msgspec.convert(tree, SlurmConfig, strict=True)
    except msgspec.ValidationError as error:
        raise UsageError("slurm." + f"{error}".partition(" - at ")[0]) from error


def _planned(found: _Found, target: Target, workers: int | None) -> Submission:
    from ensq.rundir import RunDir
    from ensq.slurm.script import sbatch_text
    from ensq.submit import Submission, count_here, plan, workers_needed

    here = count_here(found.name, target, os.environ)
    count = workers or workers_needed(found.open_members, found.settings, here or 0)
    run = RunDir.of(target.root, found.run_path)
    made = plan(
        ensemble=found.name,
        run=run,
        target=target,
        settings=found.settings,
        workers=max(1, count),
    )
    return Submission(
        ensemble=found.name,
        open_members=found.open_members,
        here_already=here,
        workers=count,
        script=Path(made.script),
        text=sbatch_text(made),
        output=made.output,
    )


def _dry_run(planned: Submission, json_: bool) -> None:
    if json_:
        _print(planned)
        return
    click.echo(planned.text, nl=False)
    if planned.workers == 0:
        click.echo(_nothing(planned), err=True)


def _show(planned: Submission, json_: bool, hint: str) -> None:
    if json_:
        _print(planned)
        return
    if planned.workers == 0:
        click.echo(_nothing(planned))
        return
    noun = "worker" if planned.workers == 1 else "workers"
    members = "member" if planned.open_members == 1 else "members"
    beside = f", beside {planned.here_already} already there" if planned.here_already else ""
    click.echo(
        f"job {planned.job}: {planned.workers} {noun} for {planned.open_members} open {members} of "
        f"{planned.ensemble}{beside}"
    )
    click.echo(f"script: {_short(planned.script)}")
    click.echo(f"output: {_short(Path(planned.output.replace('%%', '%')))}")
    click.echo(f"next: `ensq status{hint}`; `scancel {planned.job}` stops them, nothing is lost")


def _nothing(planned: Submission) -> str:
    if planned.open_members == 0:
        return f"no member of {planned.ensemble} is open: no workers are needed"
    return (
        f"{planned.here_already} workers for the {planned.open_members} open members of "
        f"{planned.ensemble} wait or run already; --workers N submits more"
    )


def _short(path: Path) -> str:
    """Relative to the working folder where that is shorter."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _print(planned: Submission) -> None:
    from ensq.cli.common import print_json

    print_json(
        {
            "ensemble": planned.ensemble,
            "open_members": planned.open_members,
            "workers_already": planned.here_already,
            "workers": planned.workers,
            "job": planned.job,
            "cluster": planned.cluster,
            "script": str(planned.script),
            "output": planned.output,
            "text": planned.text,
        }
    )
