"""``ensq config``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensq.cli.common import as_json, print_json

if TYPE_CHECKING:
    from ensq.config import Loaded
    from ensq.enqueue import Checked


set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    multiple=True,
    help="Override one value, as in training.stages.0.epochs=3. May be repeated.",
)
verbose = click.option(
    "-v", "--verbose", is_flag=True, expose_value=False, help="Show tracebacks of errors."
)


@click.group()
def config() -> None:
    """Check a configuration, show it in full, or print its schema."""


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data", "with_data", is_flag=True, help="Check against the data, too.")
@set_option
@as_json
@verbose
def check(file: Path, with_data: bool, overrides: tuple[str, ...], json_: bool) -> None:
    """Say whether FILE is valid, and what ensq makes of it.

    A file of the older form is translated; what was translated, what has no effect here and what
    the older code did otherwise is listed.
    """
    from ensq.config import lint, load_with_notes, report

    loaded = load_with_notes(file, overrides)
    notes, checked = list(loaded.notes), None
    if with_data:
        from ensq.enqueue import check as check_data

        checked = check_data(file, overrides)
        notes += [note for note in lint(loaded.config, _training(checked)) if note not in notes]
    if json_:
        found = [{"kind": note.kind, "key": note.key, "text": note.text} for note in notes]
        facts = None if checked is None else dataclasses.asdict(checked.facts)
        print_json({"file": str(file), "older_form": _older(loaded), "notes": found, "data": facts})
        return
    form = "valid after translation from an older form" if _older(loaded) else "valid"
    click.echo(f"{file}: {form}")
    if checked is not None:
        from ensq.cli.enqueue import all_facts

        click.echo(
            f"data: {checked.frames} frames of {checked.beads} beads, {_training(checked)} to "
            f"train and {len(checked.split.validation)} to validate"
        )
        for line in all_facts(checked):
            click.echo(line)
    for line in report(notes):
        click.echo(line)


def _training(checked: Checked) -> int:
    return len(checked.split.training)


def _older(loaded: Loaded) -> bool:
    return any(note.kind != "hint" for note in loaded.notes)


@config.command()
@click.argument("file", type=click.Path(path_type=Path))
@set_option
@as_json
@verbose
def show(file: Path, overrides: tuple[str, ...], json_: bool) -> None:
    """Print FILE in full, defaults included, in ensq's own form."""
    from ensq.config import load
    from ensq.config.output import to_tree, to_yaml

    loaded = load(file, overrides)
    if json_:
        print_json(to_tree(loaded))
    else:
        click.echo(to_yaml(loaded), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    from ensq.config.output import schema_text

    click.echo(schema_text(), nl=False)


def say_notes(file: Path, overrides: tuple[str, ...]) -> None:
    """Say on stderr, in a line or two, that a file has been translated or deserves a look."""
    from ensq.config import load_with_notes, summary_lines

    for line in summary_lines(load_with_notes(file, overrides).notes, str(file)):
        click.echo(line, err=True)
