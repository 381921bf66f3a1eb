"""``ensq data``."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Any

import click

from ensq.cli.common import as_json, print_json
from ensq.cli.config import verbose
from ensq.cli.reading import ENERGIES, LENGTHS, keys_of
from ensq.errors import UsageError

_INTERVAL = 10.0  # seconds between lines in a log


@click.group()
def data() -> None:
    """Convert data sets that are larger than the memory, and check them."""


@data.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option(
    "--energy-unit",
    type=click.Choice(ENERGIES),
    default="kcal/mol",
    show_default=True,
    help="Of SOURCE, as data.units.energy says it.",
)
@click.option(
    "--length-unit",
    type=click.Choice(LENGTHS),
    default="Angstrom",
    show_default=True,
    help="Of SOURCE, as data.units.length says it.",
)
@click.option(
    "--key",
    "keys",
    metavar="R|F|U|species=NAME",
    multiple=True,
    help="What SOURCE calls an array, as data.keys says it. May be repeated.",
)
@as_json
@verbose
def convert(
    source: Path,
    dest: Path,
    energy_unit: str,
    length_unit: str,
    keys: tuple[str, ...],
    json_: bool,
) -> None:
    """Write SOURCE as a converted set, the new folder DEST.

    SOURCE is what data.path may name: an NPZ or extended XYZ file, or a folder of them. Set
    data.path to DEST then: its frames are read from the disk as they are needed.
    """
    from ensq.config.structs import KeysConfig, UnitsConfig
    from ensq.data.converting import convert_set

    began = time.monotonic()
    with Ticker() as ticker:
        done = convert_set(
            source,
            dest,
            units=UnitsConfig(energy=energy_unit, length=length_unit),  # type: ignore[arg-type]
            keys=KeysConfig(**keys_of(keys)),
            say=ticker.say,
        )
    told = _told(done.path, done.index, done.digest) | {"seconds": time.monotonic() - began}
    if json_:
        print_json(told)
        return
    click.echo(
        f"{dest}: {told['frames']} frames of {told['beads']} beads, {_size(told['bytes'])}: "
        f"{', '.join(told['arrays'])}; SHA-256 {done.digest[:12]}…"
    )


@data.command()
@click.argument("set_", metavar="SET", type=click.Path(path_type=Path))
@as_json
@verbose
def check(set_: Path, json_: bool) -> None:
    """Read all of the converted set SET: whether its arrays are what was converted."""
    from ensq.data import index
    from ensq.data.examining import examine

    if not index.is_converted(set_):
        raise UsageError(f"{set_}: no converted set; `ensq data convert` makes one")
    with Ticker() as ticker:
        found = examine(set_, ticker.say)
    told = _told(set_, found, index.digest(set_))
    if json_:
        print_json(told)
        return
    click.echo(f"{set_}: whole; {told['frames']} frames of {told['beads']} beads")


def _size(count: float) -> str:
    """Bytes as a person says them."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count, units = count / 1000, units[1:]
    return f"{count:.3g} {units[0]}"


def _told(path: Path, index: Any, digest: str) -> dict[str, Any]:
    return {
        "path": str(path),
        "frames": index.frames,
        "beads": index.beads,
        "bytes": index.size,
        "units": {"energy": index.units.energy, "length": index.units.length},
        "species": list(index.species_names),
        "arrays": {key: dataclasses.asdict(entry) for key, entry in index.arrays.items()},
        "digest": digest,
    }


class Ticker:
    """How far a long task is, on stderr: one line that is kept current in a terminal; elsewhere,
    as in a log, a line now and then. SIGTERM ends the task as Ctrl-C does, so that it can remove
    what is half done."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._text, self._last = "", 0.0
        self._open = self._stopped = False

    def __enter__(self) -> Ticker:
        self._before = signal.signal(signal.SIGTERM, self.stop)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self._open:
            click.echo(err=True)

    def stop(self, *signal: object) -> None:
        """Let the next word end the task."""
        self._stopped = True

    def say(self, text: str, done: int, total: int) -> None:
        if self._stopped:
            raise click.Abort
        now = time.monotonic()
        if text != self._text:
            self._text, self._began, self._last = text, now, 0.0
        elif now - self._last < (0.2 if self._terminal else _INTERVAL) and done < total:
            return
        if total and not self._terminal and not self._last and done < total:
            self._last = now  # the first line after an interval, when the speed is known
            return
        self._last = now
        self._write(f"{text}{self._how_far(done, total, now - self._began)}")

    def _how_far(self, done: int, total: int, seconds: float) -> str:
        from ensq.progress import duration

        if not total:
            return ""
        speed = done / max(seconds, 1e-3)
        left = duration((total - done) / speed) if done else "unknown"
        return f": {done} of {total} frames, {speed:.3g} per s, {left} left"

    def _write(self, line: str) -> None:
        if self._terminal:
            click.echo(f"\r{line}\x1b[K", nl=False, err=True)
            self._open = True
        else:
            click.echo(line, err=True)
