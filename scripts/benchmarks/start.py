"""(f) Times of import and commands against an interpreter that does nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

from benchmarks.rows import Aim, Row, pair
from benchmarks.run import Run, in_turns, machine, measured, python

HELP, STATUS = 0.150, 0.600  # seconds at most
SMALL, LARGE = 8, 1000  # members of an ensemble


def rows(run: Run) -> Iterator[Row]:
    """A row for each command."""
    nothing = [python(), "-c", "pass"]
    ensq = [python(), "-m", "ensq.cli"]
    database = _database(run)
    status = [*ensq, "status", "--db", str(database)]
    cases: list[tuple[str, list[str], float | None]] = [
        ("import ensq", [python(), "-c", "import ensq"], None),
        ("ensq --help", [*ensq, "--help"], HELP),
        (f"ensq status, {run.jobs:,} jobs", status, STATUS),
        (f"ensq status NAME, {run.jobs:,} jobs", [*status, "bench"], STATUS),
    ]
    for what, command, limit in cases:
        _time(run, command)  # reads the files and compiles the modules

        def one(number: int, command: Sequence[str] = command) -> tuple[float, float]:
            return in_turns(number, lambda: _time(run, command), lambda: _time(run, nothing))

        found = measured(run.rounds(15, 3), run, one)
        middle = sorted(own for own, _ in found)[len(found) // 2]
        yield pair(
            found,
            aim=None if limit is None else Aim(limit, least=False, unit=" s"),
            measure=middle,
            row="f",
            only="start",
            what=what,
            names=(" ".join(command[1:]), "python -c pass"),
            device=machine(),
            detail={"jobs": run.jobs} if "status" in what else {},
        )


def _time(run: Run, command: Sequence[str]) -> float:
    began = time.perf_counter()
    done = subprocess.run(
        command,
        env=run.environment(),
        cwd=run.folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.decode(errors='replace').strip()}")
    return seconds


def _database(run: Run) -> Path:
    """A queue of so many waiting jobs: one ensemble of 8, the others in ensembles of 1,000. The
    first is made by ensq, the others are copies of it by SQL, which is faster."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import bench_queue

    path = run.place("start") / "ensq.db"
    bench_queue.Queue(str(path), None).fill(SMALL)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.row_factory = sqlite3.Row
        ensemble = dict(connection.execute("SELECT * FROM ensembles").fetchone())
        job = dict(connection.execute("SELECT * FROM jobs").fetchone())
        left = list(range(SMALL, run.jobs))
        ensembles = [
            {**ensemble, "id": number, "name": f"bench-{number}", "run_path": f"bench-{number}"}
            for number in range(2, 3 + len(left) // LARGE)
        ]
        jobs = [
            {
                **job,
                "id": number + 1,
                "ensemble_id": 2 + place // LARGE,
                "position": place % LARGE,
                "seed": place % LARGE,
            }
            for place, number in enumerate(left)
        ]
        for table, rows in (("ensembles", ensembles), ("jobs", jobs)):
            names = ", ".join(f":{name}" for name in rows[0])
            columns = ", ".join(rows[0])
            connection.executemany(f"INSERT INTO {table} ({columns}) VALUES ({names})", rows)
    return path
