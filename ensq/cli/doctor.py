"""``ensq doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ensq.cli.common import as_json, database, print_json, url_of

if TYPE_CHECKING:
    from ensq.doctor import Finding, Share


@click.command()
@as_json
@database
def doctor(db: str | None, json_: bool) -> int:
    """Look at this machine, the database and SLURM, and say what to do.

    Run it in a job as well: srun --gres=gpu:1 --time=2 ensq doctor. Exit code 1 if there is a
    problem; warnings are none. docs/doctor.md explains each finding.
    """
    from dataclasses import asdict

    # A file is looked at by a child process alone: its file system may not answer.
    url = db if db and db.startswith("sqlite") else url_of(db)
    found = _look(url)
    if json_:
        print_json({"findings": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            _show(finding)
        click.echo(_sum(found))
    return int(any(finding.state == "problem" for finding in found))


def _look(url: str) -> list[Finding]:
    from ensq import doctor as checks
    from ensq.worker.options import WorkerOptions

    return [
        *checks.check_packages(),
        checks.check_jax(),
        *checks.check_machine(_share()),
        *checks.check_scratch(),
        *checks.check_places(url),
        *checks.check_slurm(WorkerOptions.grace),
    ]


def _share() -> Share:
    """What a worker that is started here would take."""
    import os

    from ensq.doctor import Share
    from ensq.worker import devices

    settings = devices.trainer_settings(os.environ, share=1)
    environment = {**os.environ, **settings}
    cpus = devices.cpus_of_allocation(environment)
    return Share(
        cpus=cpus.count,
        source=cpus.source,
        gpus=tuple(devices.gpus_to_use(environment)),
        trainer=devices.devices_in_words(environment),
    )


def _show(finding: Finding) -> None:
    from ensq.progress import printable

    indent = " " * 9
    for begin, text in ((f"{finding.state:<9}", finding.seen), (f"{indent}do: ", finding.advice)):
        if text:
            # Names of files may hold anything; messages may have several lines.
            plain = printable(" ".join(text.split()))
            click.echo(click.wrap_text(plain, 79, initial_indent=begin, subsequent_indent=indent))


def _sum(found: list[Finding]) -> str:
    states = [finding.state for finding in found]
    counts = [
        f"{states.count(state)} {state}{'' if states.count(state) == 1 else 's'}"
        for state in ("problem", "warning")
        if state in states
    ]
    return ", ".join(counts) or "nothing to do"
