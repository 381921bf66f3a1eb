"""``python -m benchmarks``: measures the rows, prints the table, writes the JSON."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import rows
from benchmarks.pairs import FUNCTIONS, end_sides
from benchmarks.rows import Row
from benchmarks.run import ROOT, Run, machine, versions


class Part(NamedTuple):
    """A part of the benchmark."""

    letter: str
    module: str
    share: float  # of the time, where it is limited


PARTS = {
    "ensemble": Part("a", "ensemble", 4.0),
    "pack": Part("b", "pack", 2.5),
    "step": Part("c", "step", 2.5),
    "queue": Part("d", "claims", 0.5),
    "overhead": Part("e", "overhead", 2.0),
    "start": Part("f", "start", 0.5),
    "growth": Part("g", "growth", 2.0),
}
SHORT = (
    "data.max_frames=310",
    "training.stages.0.epochs=2",
    "model.allegro.max_ell=1",
    "model.allegro.n_channels=4",
    "model.allegro.mlp_n_hidden=16",
)
SHORT_MEMBERS, SHORT_JOBS = 2, 5000


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 if every row was measured, 1 if one failed. An aim that is missed is none."""
    began = time.monotonic()
    options = _parse(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended, too
    said = shlex.join(sys.argv[1:] if arguments is None else arguments)
    command = f"scripts/benchmark {said}".strip()
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="ensq-benchmark-", dir=options.folder) as folder:
        run = _run(options, Path(folder), command)
        if options.json:
            rows.write(options.json, [])  # whatever happens, there is one
        print(f"{machine()}, load {os.getloadavg()[0]:.1f}")
        print("ratio: the other side's time over ensq's; NO: the aim is missed\n")
        for line in rows.table_head():
            print(line, flush=True)
        try:
            for row in _rows(run, options, began):
                found.append(row)
                if options.json:
                    rows.write(options.json, found)
                for line in rows.table_lines(row):
                    print(line, flush=True)
        finally:
            end_sides(run)
    failed = [row for row in found if row.error]
    if options.json:
        print(f"\nwritten: {options.json}")
    return 1 if failed else 0


def _rows(run: Run, options: argparse.Namespace, began: float) -> Iterator[Row]:
    """Of all parts that are wanted, each with its share of the time that is left."""
    parts = options.only or list(PARTS)
    for place, part in enumerate(parts):
        left = options.within - (time.monotonic() - began)
        shares = [PARTS[later].share for later in parts[place:]]
        yield from _measure(part, run, min(options.budget, left * shares[0] / sum(shares)))


def _measure(part: str, run: Run, budget: float) -> Iterator[Row]:
    """The rows of a part as they are measured; a failure is a row, too, and the last one."""
    began = time.monotonic()
    run.deadline = began + budget
    count = 0
    common = {"versions": versions(), "command": run.command, "short": run.short}
    try:
        for row in importlib.import_module(f"benchmarks.{PARTS[part].module}").rows(run):
            count += 1
            detail = {**row.detail, "load": os.getloadavg()[0]}
            yield dataclasses.replace(row, detail=detail, device=row.device or machine(), **common)
    except Exception as error:
        traceback.print_exc()
        yield Row(
            row=PARTS[part].letter,
            only=part,
            what=f"{part}: row {count + 1}",
            names=("ensq", "other"),
            device=machine(),
            error=f"{type(error).__name__}: {error}",
            **common,
        )
    run.say(f"  {part}: {time.monotonic() - began:.0f} s")


def _run(options: argparse.Namespace, folder: Path, command: str) -> Run:
    sets = (SHORT if options.short else ()) + tuple(options.set)
    return Run(
        config=options.config.resolve(),
        folder=folder,
        short=options.short,
        repeats=options.repeats,
        members=options.members or (SHORT_MEMBERS if options.short else 8),
        packs=options.packs,
        functions=tuple(options.function),
        jobs=options.jobs or (SHORT_JOBS if options.short else 100_000),
        command=command,
        sets=sets,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/benchmark", description=__doc__)
    add = parser.add_argument
    add("--only", action="append", choices=PARTS, help="one part; may be given several times")
    add("--json", type=Path, metavar="FILE", help="write every row here as soon as it is there")
    add("--short", action="store_true", help="a small network, few frames, few rounds")
    add("--repeats", type=_number, metavar="N", help="rounds of every row")
    add("--budget", type=float, default=float("inf"), metavar="SECONDS", help="for each part")
    add("--within", type=float, default=float("inf"), metavar="SECONDS", help="for all parts")
    add("--members", type=_number, metavar="N", help="of the ensemble (8)")
    add("--packs", type=_numbers, metavar="N,N", help="sizes of packs, the first of them 1")
    add("--function", action="append", default=[], choices=FUNCTIONS, help="of step's other side")
    add("--jobs", type=_number, metavar="N", help="in the database of start (100000)")
    add("--config", type=Path, default=ROOT / "configs" / "chignolin.yaml", metavar="FILE")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="as of `ensq run`")
    add("--folder", type=Path, metavar="FOLDER", help="where files lie while it runs")
    return parser.parse_args(arguments)


def _number(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _numbers(text: str) -> tuple[int, ...]:
    found = tuple(_number(part) for part in text.split(","))
    if found[0] != 1:
        raise ValueError(text)
    return found


if __name__ == "__main__":
    sys.exit(main())
