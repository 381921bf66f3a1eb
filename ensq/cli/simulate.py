"""``ensq simulate``."""

from __future__ import annotations

import math
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ensq.cli.common import as_json, database, print_json, url_of
from ensq.errors import EXIT_INTERRUPTED, EXIT_JOBS_FAILED, UsageError

if TYPE_CHECKING:
    from ensq.dynamics.running import Progress
    from ensq.simulation import Distribution, Simulation

_INTERVAL = 10.0  # s between two lines of progress in a log
_ABOVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("name", metavar="NAME|FOLDER")
@click.argument("data", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--replicas", type=click.IntRange(1), default=32, show_default=True)
@click.option("--steps", type=click.IntRange(1), default=10_000, show_default=True)
@click.option(
    "--timestep", type=_ABOVE, metavar="FS", help="Default: 0.5 fs for atoms, 5 fs for beads."
)
@click.option("--temperature", type=_ABOVE, metavar="K", help="Default: temperature_K of the data.")
@click.option(
    "--friction",
    type=click.FloatRange(min=0),
    default=1.0,
    show_default=True,
    metavar="1/PS",
    help="0: constant energy.",
)
@click.option(
    "--frames",
    metavar="LIST",
    help="To start from, as in 0,10,20-29. Default: spread over the validation frames, or over "
    "DATA.",
)
@click.option(
    "--mass",
    "masses",
    metavar="[NAME=]VALUE",
    multiple=True,
    help="Of a species, or of all, in g/mol. Default: of elements and amino acids. May be "
    "repeated.",
)
@click.option("--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True)
@click.option(
    "--every", type=click.IntRange(1), metavar="STEPS", help="Between two records. Default: 500."
)
@click.option(
    "--max-epsilon",
    type=_ABOVE,
    metavar="FORCE",
    help="Stop a replica when the members disagree more than that on the force of a bead, in the "
    "run's unit.",
)
@click.option(
    "--equilibration",
    type=click.FloatRange(0, 0.9),
    default=0.2,
    show_default=True,
    metavar="SHARE",
    help="Of the time, left out of means and distributions.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Where the trajectories go: .npz or .extxyz.",
)
@click.option("--label", help="Tells the files of several runs apart: simulation-LABEL.npz.")
@click.option(
    "--allow-explosions", is_flag=True, help="Exit with 0 even if replicas had to be stopped."
)
@as_json
@database
def simulate(
    name: str,
    data: Path | None,
    masses: tuple[str, ...],
    output: Path | None,
    label: str | None,
    allow_explosions: bool,
    json_: bool,
    db: str | None,
    **chosen: Any,
) -> None:
    """Run short Langevin dynamics with the mean of NAME's members.

    NAME is an ensemble, or a FOLDER that `ensq finalize` wrote. Replicas start from frames of DATA
    (default: those of the training); one that explodes is stopped and the reason told, the others
    go on. Bonds, angles, dihedrals and the radius of gyration are compared with those of DATA.
    The exit code is 1 if a replica exploded.
    """
    from ensq import simulation, trained
    from ensq.dynamics import trajectory
    from ensq.dynamics.options import Options
    from ensq.dynamics.running import simulate as run
    from ensq.ensemble import LoadedEnsemble
    from ensq.rundir import check_name

    if output is not None:
        trajectory.check_path(output)
    options = Options(masses=_masses(masses), **chosen)
    members = trained.find(name, url_of(db))
    source = data or members.data
    if source is None:
        raise UsageError(f"{name}: its export folder holds no data: name a data file to start from")
    stem = check_name(label or source.stem)
    with Ticker() as ticker:
        found = run(LoadedEnsemble(members, options.dtype), source, options, ticker)
    if output is not None:
        trajectory.write(output, found.trajectory)
    path = members.analysis / f"{simulation.PREFIX}{stem}.npz"
    files = [*simulation.write(path, found.simulation), *([] if output is None else [output])]
    if json_:
        print_json({**simulation.plain(found.simulation), "files": [str(file) for file in files]})
    else:
        for line in _lines(found.simulation, files):
            click.echo(line)
    if found.simulation.interrupted:
        raise click.exceptions.Exit(EXIT_INTERRUPTED)
    if not found.simulation.stable and not allow_explosions:
        raise click.exceptions.Exit(EXIT_JOBS_FAILED)


def _masses(given: tuple[str, ...]) -> dict[str, float]:
    found = {}
    for text in given:
        name, _, value = text.rpartition("=")
        try:
            mass = float(value)
        except ValueError:
            mass = math.nan
        if not 0 < mass < math.inf:
            raise UsageError(f"--mass {text}: write NAME=VALUE, or one VALUE for all, in g/mol")
        found[name] = mass
    return found


def _lines(found: Simulation, files: list[Path]) -> list[str]:
    return [
        f"{found.name}: mean of {len(found.seeds)} members, {found.n_replicas} replicas, "
        f"{found.temperature:g} K, {found.timestep:g} fs, friction {found.friction:g}/ps",
        *_how_it_went(found),
        *_contacts(found),
        *_epsilons(found),
        *_distributions(found),
        *_wrapped(found.verdict),
        "files:",
        *(f"  {file}" for file in files),
    ]


def _wrapped(text: str, first: str = "", rest: str = "") -> list[str]:
    import textwrap

    return textwrap.wrap(text, 79, initial_indent=first, subsequent_indent=rest)


def _how_it_went(found: Simulation) -> list[str]:
    time_ = found.time_done
    lines = [
        f"survived: {found.survived} of {found.n_replicas}; time {time_.sum():.4g} ps in all, "
        f"{time_.min():.4g} to {time_.max():.4g} ps each"
    ]
    stopped = [(k, why) for k, why in enumerate(found.reasons) if why]
    for number, why in stopped[:8]:
        lines += _wrapped(f"replica {number}: {why}", "  ", "    ")
    if len(stopped) > 8:
        lines.append(f"  … and {len(stopped) - 8} more (--json has all)")
    if found.bond_limits:
        seen = found.bonds[found.recorded & (found.bonds[..., 1] > 0)]
        lines.append(
            f"bonds: {seen[:, 0].min():.3g} to {seen[:, 1].max():.3g} Angstrom, allowed "
            f"{found.bond_limits}"
        )
    if found.ensemble_temperature is not None:
        error = "" if found.temperature_error is None else f" ± {found.temperature_error:.2g}"
        lines.append(
            f"temperature: {found.ensemble_temperature:.4g}{error} K of {found.temperature:g} K"
        )
    if found.steps_per_second:
        nanoseconds = found.steps_per_second * found.timestep * 1e-6 * 86400
        lines.append(
            f"speed: {found.steps_per_second:.3g} steps/s of all replicas together, "
            f"{nanoseconds:.3g} ns/day each"
        )
    return lines


def _contacts(found: Simulation) -> list[str]:
    lines = []
    for one in found.contacts:
        of = f" of {one.molecule}" if one.molecule else ""
        text = (
            f"contacts{of}: {one.smallest:.3g} Angstrom or more ({one.beads})"
            f"; in the data {one.data_smallest:.3g} ({one.data_beads})"
        )
        if one.closer is not None:
            text += (
                f"; {100 * one.closer:.3g} % of the frames are closer than 99 % of the data's, "
                f"{one.data_level:.3g} (1 % is usual)"
            )
        lines += _wrapped(text, "", "  ")
    return lines


def _epsilons(found: Simulation) -> list[str]:
    if not found.epsilon_simulation:
        return []
    from ensq.text import table

    head = ["epsilon", *(f"{100 * level:g} %" for level in found.epsilon_levels)]
    head[-1] = "largest"
    rows = [
        ["data", *(f"{x:.3g}" for x in found.epsilon_data)],
        ["simulation", *(f"{x:.3g}" for x in found.epsilon_simulation)],
    ]
    lines = [f"disagreement of the members on forces, {found.force_unit}:"]
    lines += table(head, rows, left=(0,))
    if found.extrapolation is not None:
        lines.append(
            f"  {100 * found.extrapolation:.3g} % of the beads are above 99 % of the data's "
            "(1 % is usual)"
        )
    return lines


def _distributions(found: Simulation) -> list[str]:
    if not found.distributions:
        return [
            f"distributions: none (nothing after the first {found.equilibration:g} ps, or periodic "
            "boundaries)"
        ]
    lines = [f"distributions against the data, the first {found.equilibration:g} ps left out:"]
    for molecule in dict.fromkeys(one.molecule for one in found.distributions):
        lines += _table([one for one in found.distributions if one.molecule == molecule], molecule)
    return lines


def _table(some: list[Distribution], molecule: str) -> list[str]:
    """JS with its interval and the most that the data's halves differ by; the Wasserstein distance
    and, of halves, the usual one."""
    from ensq.text import table

    rows = []
    for one in some:
        unit = "A" if one.unit == "Angstrom" else "deg"
        rows.append(
            [
                one.label,
                f"{one.js:.3f}",
                "{:.3f}-{:.3f}".format(*one.js_interval),
                "-" if one.js_noise is None else f"{one.js_noise[1]:.3f}",
                f"{one.wasserstein:.2g} {unit}",
                "-" if one.wasserstein_noise is None else f"{one.wasserstein_noise[0]:.2g}",
                {None: "?", True: "differs", False: "as data"}[one.differs],
            ]
        )
    head = (molecule, "JS", "95 %", "halves", "moved", "halves", "")
    return table(head, rows, left=(0, 6))


class Ticker:
    """Tells on stderr how far the dynamics are: one line that is kept current in a terminal;
    elsewhere a line now and then. Ctrl-C and SIGTERM end them with what there is; a second Ctrl-C
    at once."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._last = time.monotonic()
        self._open = False
        self._asked = 0

    def __enter__(self) -> Ticker:
        self._before = {
            number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._open:
            click.echo(err=True)

    def _stop(self, *signal: object) -> None:
        self._asked += 1
        if self._asked > 1:
            raise KeyboardInterrupt

    def stopped(self) -> bool:
        return self._asked > 0

    def say(self, text: str) -> None:
        click.echo(f"{text} …", err=True)

    def progress(self, at: Progress) -> None:
        now = time.monotonic()
        if now - self._last < (0.2 if self._terminal else _INTERVAL) and at.step < at.steps:
            return
        self._last = now
        line = _progress_line(at)
        if self._terminal:
            click.echo(f"\r{line}\x1b[K", nl=False, err=True)
            self._open = True
        else:
            click.echo(line, err=True)


def _progress_line(at: Progress) -> str:
    from ensq.progress import duration

    line = f"step {at.step} of {at.steps}"
    if at.steps_per_second:
        nanoseconds = at.steps_per_second * at.timestep * 1e-6 * 86400
        left = duration((at.steps - at.step) / at.steps_per_second)
        line += f", {at.steps_per_second:.3g} steps/s, {nanoseconds:.3g} ns/day, {left} left"
    return f"{line}; {at.exploded} of {at.replicas} exploded"
