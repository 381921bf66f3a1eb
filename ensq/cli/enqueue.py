"""``ensq enqueue``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensq.cli.common import database, db_hint, enqueue_options, overrides_of, url_of

if TYPE_CHECKING:
    from ensq.enqueue import Enqueued


@click.command()
@click.argument("config", type=click.Path(path_type=Path))
@enqueue_options
@database
def enqueue(
    config: Path,
    db: str | None,
    name: str | None,
    n_models: int | None,
    overrides: tuple[str, ...],
) -> None:
    """Check CONFIG and its data, and write one row per seed.

    Twice is the same as once. Under the same name, more seeds may be added; another
    configuration or other data are refused (exit code 78).
    """
    from ensq.cli.config import say_notes
    from ensq.enqueue import check
    from ensq.enqueue import enqueue as write
    from ensq.store import Store

    say_notes(config, overrides_of(overrides, n_models))
    checked = check(config, overrides_of(overrides, n_models))
    with Store.open(url_of(db), create=True) as store:
        done = write(store, checked, name)
    for line in summary(done):
        click.echo(line)
    hint = db_hint(db)
    click.echo(f"next: `ensq worker{hint}` here, `srun ensq worker{hint}` in a SLURM job")


def summary(done: Enqueued) -> list[str]:
    """What was enqueued, in words."""
    from ensq.text import ranges

    frames = f"{done.frames} frames of {done.beads} beads"
    lines = [
        f"ensemble {done.ensemble.name}: {frames}, {done.training_frames} to train and "
        f"{done.validation_frames} to validate"
    ]
    if done.new_seeds:
        lines.append(f"new: {_members(len(done.new_seeds))}, seeds {ranges(done.new_seeds)}")
    if done.existing_seeds:
        count = _members(len(done.existing_seeds))
        lines.append(f"there already: {count}, seeds {ranges(done.existing_seeds)}")
    return lines


def _members(count: int) -> str:
    return f"{count} member" + ("s" if count != 1 else "")
