"""``ensq doctor``."""

from __future__ import annotations

import click

from ensq.cli.common import as_json, database, print_json, url_of


@click.command()
@as_json
@database
def doctor(db: str | None, json_: bool) -> int:
    """Look at this machine, the database and SLURM, and say what to do.

    Exit code 1 if there is a problem; warnings are none.
    """
    from dataclasses import asdict

    from ensq import doctor as checks
    from ensq.worker.options import WorkerOptions

    grace = WorkerOptions.grace
    url = url_of(db)
    found = [*checks.check_machine(), *checks.check_places(url), *checks.check_slurm(grace)]
    if json_:
        print_json({"findings": [asdict(finding) for finding in found]})
    else:
        for finding in found:
            _show(finding.state, finding.seen, finding.advice)
    return int(any(finding.state == "problem" for finding in found))


def _show(state: str, seen: str, advice: str) -> None:
    from ensq.progress import printable

    indent = " " * 9
    for begin, text in ((f"{state:<9}", seen), (f"{indent}do: ", advice)):
        if text:
            click.echo(
                click.wrap_text(printable(text), 79, initial_indent=begin, subsequent_indent=indent)
            )
