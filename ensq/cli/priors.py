"""``ensq priors``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ensq.cli.common import as_json, print_json
from ensq.errors import UsageError

if TYPE_CHECKING:
    from ensq.boltzmann import Fit, Kind, Unit
    from ensq.priorfiles import Length


@click.group()
def priors() -> None:
    """Prior energies over chains of beads."""


@priors.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="Where the keys for a configuration go (YAML), in a folder that exists.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    metavar="K",
    help="Of the simulation. Default: temperature_K of the data.",
)
@click.option(
    "--kind",
    type=click.Choice(["fourier", "spline"]),
    default="fourier",
    show_default=True,
    help="Harmonic bonds and Fourier series, or splines of all three.",
)
@click.option("--order-angle", type=click.IntRange(1, 8), default=3, show_default=True, metavar="N")
@click.option(
    "--order-dihedral", type=click.IntRange(1, 8), default=3, show_default=True, metavar="N"
)
@click.option(
    "--spline-out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where splines go (NPZ). Default: beside the YAML.",
)
@click.option(
    "--residue-specific-angles", is_flag=True, help="Angles take the splines of their species."
)
@click.option(
    "--grid",
    type=click.IntRange(8, 10000),
    default=500,
    show_default=True,
    help="Knots of a spline.",
)
@click.option(
    "--bandwidth",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Factor on the width of the kernels that smooth a spline.",
)
@click.option(
    "--plots",
    type=click.Path(file_okay=False, path_type=Path),
    help="Draw histograms and fits into this folder (PNG), which is made if it is not there.",
)
@click.option("--protein", metavar="NAME|NUMBER", help="Only the frames of this protein.")
@click.option(
    "--energy-unit",
    type=click.Choice(["kcal/mol", "eV"]),
    default="kcal/mol",
    show_default=True,
    help="Of what is written.",
)
@click.option(
    "--length-unit",
    type=click.Choice(["Angstrom", "nm", "Bohr"]),
    default="Angstrom",
    show_default=True,
    help="Of the data.",
)
@as_json
@click.option("-v", "--verbose", is_flag=True, expose_value=False, help="Show tracebacks.")
def fit(
    data: Path,
    output: Path,
    temperature: float | None,
    kind: Kind,
    order_angle: int,
    order_dihedral: int,
    spline_out: Path | None,
    residue_specific_angles: bool,
    grid: int,
    bandwidth: float,
    plots: Path | None,
    protein: str | None,
    energy_unit: Unit,
    length_unit: Length,
    json_: bool,
) -> None:
    """Fit priors to the chains in DATA by Boltzmann inversion."""
    from ensq import boltzmann, priorfiles
    from ensq.outputs import check_outputs

    if kind != "spline" and (spline_out is not None or residue_specific_angles):
        raise UsageError("--spline-out and --residue-specific-angles need --kind spline")
    outputs = {"-o": output}
    if kind == "spline":
        option = "the splines beside -o:" if spline_out is None else "--spline-out"
        outputs[option] = output.with_suffix(".npz") if spline_out is None else spline_out
    check_outputs(data, outputs)
    chains = priorfiles.read(data, length=length_unit, protein=protein)
    if temperature is None:
        temperature = chains.temperature
    if temperature is None:
        raise UsageError(f"{data} does not tell its temperature (temperature_K): --temperature K")
    done = boltzmann.fit(
        chains,
        temperature=temperature,
        unit=energy_unit,
        kind=kind,
        orders=(order_angle, order_dihedral),
        grid=grid,
        bandwidth=bandwidth,
    )
    files = list(outputs.values())
    name = None
    for option, splines in list(outputs.items())[1:]:
        priorfiles.write(option, splines, priorfiles.splines_of(done))
        name = splines.name if splines.parent == output.parent else str(splines.absolute())
    text = priorfiles.as_yaml(done, name, residue_specific_angles)
    priorfiles.write("-o", output, text.encode())
    if plots is not None:
        from ensq.plots import draw

        files += draw(done, plots)
    _show(done, files, json_)


def _show(done: Fit, files: list[Path], json_: bool) -> None:
    from ensq.priorfiles import numbers_of

    numbers = numbers_of(done)
    if json_:
        print_json({**numbers, "files": [str(path) for path in files]})
        return
    samples = ", ".join(f"{count} {name}s" for name, count in numbers["samples"].items())
    click.echo(
        f"{done.source}: {done.frames} frames, {samples}; {done.temperature:g} K, "
        f"kT {done.kT:.4g} {done.unit}"
    )
    for key, value in numbers["priors"].items():
        values = value if isinstance(value, list) else [value]
        click.echo(f"  {key:<11}{'  '.join(f'{number:.5g}' for number in values)}")
    for name, error in numbers["spline_error"].items():
        click.echo(f"  {name} spline: within {error:.1g} {done.unit} of what it interpolates")
    missing = [name for name in ("bond", "angle", "dihedral") if name not in numbers["samples"]]
    for name in missing:
        click.echo(f"  no {name}s: the chains are too short")
    click.echo("files:")
    for path in files:
        click.echo(f"  {path}")
