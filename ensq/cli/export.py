"""``ensq export``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensq.cli.common import as_json, database, only_ensemble, print_json, url_of

if TYPE_CHECKING:
    from ensq.exports import Priors
    from ensq.reexport import Reexported


@click.command()
@click.argument("name", required=False)
@click.option("--member", "index", type=int, metavar="INDEX", help="A finished member: 0 to n-1.")
@click.option("--seed", type=int, help="A finished member by its seed.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="A checkpoint file of any member, finished or not.",
)
@click.option(
    "--priors",
    type=click.Choice(["embedded", "native"]),
    help="Priors inside the model file, or as LAMMPS input. Default: export.priors.",
)
@click.option(
    "--reference-energies/--no-reference-energies",
    default=None,
    help="Whether the model file adds the reference energies. Default: export.reference_energies.",
)
@click.option(
    "-o",
    "--export-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files go. Default: where finalize puts them.",
)
@as_json
@database
def export(
    name: str | None,
    index: int | None,
    seed: int | None,
    checkpoint: Path | None,
    priors: Priors | None,
    reference_energies: bool | None,
    export_dir: Path | None,
    db: str | None,
    json_: bool,
) -> None:
    """Export one member of NAME again, or the model in a checkpoint.

    Other members may still be in training. The file is read back, run, and held against the trained
    model before anything is written. NAME is the run's name, as `ensq status` shows it; names of
    files begin with its model_context.
    """
    from ensq.store import Store

    with Store.open(url_of(db), read_only=True) as store:
        ensemble = only_ensemble(store, name)
        from ensq.reexport import reexport

        done = reexport(
            store,
            ensemble,
            index=index,
            seed=seed,
            checkpoint=checkpoint,
            priors=priors,
            folder=export_dir,
            reference_energies=reference_energies,
            say=lambda text: click.echo(f"{text} …", err=True),
        )
    if json_:
        print_json(_plain(done))
        return
    for line in _lines(done):
        click.echo(line)


def _plain(done: Reexported) -> dict[str, Any]:
    return {
        "seed": done.seed,
        "epoch": done.epoch,
        "loss": done.loss,
        "force_rmse": done.rmse_force,
        "energy_rmse_per_bead": done.rmse_energy,
        "comparison": done.comparison,
        "reference_energies": done.reference_energies,
        "notes": list(done.notes),
        "export_folder": str(done.folder),
        "files": list(done.files),
    }


def _lines(done: Reexported) -> list[str]:
    from ensq.cli.finalize import agreement_lines

    return [
        f"seed {done.seed}, epoch {done.epoch}: validation loss {done.loss:.6g}",
        *agreement_lines("export, read back and run, differs", [done.comparison], done.unit),
        *(f"note: {note}" for note in done.notes),
        f"files in {done.folder}:",
        *(f"  {name}" for name in done.files),
    ]
