"""(e) What recording and checkpoints cost: a worker's epochs against the same epochs bare."""

from __future__ import annotations

import sqlite3
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.pairs import ensq_side
from benchmarks.rows import Aim, Row, pair
from benchmarks.run import Run, in_turns, measured, python

LOOK = 0.02  # seconds between looks at the database: a tenth of a percent of another core
MOST = 1.0  # percent of the training that recording may cost
PATIENCE = 600.0


def rows(run: Run) -> Iterator[Row]:
    """One row: seconds of an epoch. The worker is one process and its trainer another, as always;
    a checkpoint is written, and the epoch's losses recorded, after every epoch."""
    epochs = 3 if run.short else 20
    place = run.place("overhead")
    sets = [*run.sets, f"training.stages[0].epochs={epochs}", "training.checkpoint_freq=1"]
    shares: list[float] = []
    _ensq(run, place, "enqueue", str(run.config), "--name", "bench", "--n-models", "64", *_sets(sets))
    with ensq_side(run, sets) as bare:
        bare.seconds("warm")

        def by_worker() -> float:
            seconds, share = _train_one(run, place, epochs)
            shares.append(share)
            return seconds

        def one(number: int) -> tuple[float, float]:
            return in_turns(
                number, by_worker, lambda: bare.seconds("epochs", count=epochs) / epochs
            )

        _train_one(run, place, epochs)  # compiles, and leaves it in the run's cache
        found = measured(run.rounds(4, 1), run, one)
        device = bare.about["device"]
    apart = 100 * (statistics.median(own / other for own, other in found) - 1)
    inside = 100 * statistics.median(shares)
    yield pair(
        found,
        aim=Aim(MOST, least=False, unit=" %"),
        measure=inside,
        row="e",
        only="overhead",
        what=f"epoch by a worker / bare ({inside:.2f} % rest)",
        names=("ensq worker, an epoch recorded", "run_steps and validate alone"),
        device=device,
        detail={
            "epochs_per_round": epochs,
            # within the worker's own epochs: all that is neither a step nor validation
            "outside_training_percent": inside,
            "outside_training_percent_rounds": [100 * share for share in shares],
            # of the two processes, each at its own time on this machine
            "slower_than_bare_percent": apart,
        },
    )


def _train_one(run: Run, place: Path, epochs: int) -> tuple[float, float]:
    """One member by a fresh worker: seconds per epoch from the first one's end to the last one's,
    and the share of that which the trainer did not count as training."""
    log = place / "worker.log"
    with log.open("ab") as file:
        worker = subprocess.Popen(
            [python(), "-m", "ensq.cli", "worker", "--max-jobs", "1"],
            cwd=place,
            env=run.environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        try:
            first, last, job = _watch(run, worker, place / "ensq.db", epochs)
            worker.wait(PATIENCE)
        finally:
            worker.kill()
            worker.wait()
    rows = _read(place / "ensq.db", f"SELECT seconds FROM epochs WHERE job_id = {job} AND epoch > 1")
    training = sum(float(row[0]) for row in rows)
    wall = last - first
    return wall / (epochs - 1), (wall - training) / training


def _watch(
    run: Run, worker: subprocess.Popen[bytes], database: Path, epochs: int
) -> tuple[float, float, int]:
    """When the first and the last epoch of the member now running were recorded; its job."""
    done = {row[0] for row in _read(database, "SELECT id FROM jobs WHERE epoch > 0")}
    first: float | None = None
    until = time.monotonic() + min(PATIENCE, run.left())
    while time.monotonic() < until:
        now = time.perf_counter()
        new = [
            (job, epoch)
            for job, epoch in _read(database, "SELECT id, epoch FROM jobs WHERE epoch > 0")
            if job not in done
        ]
        if new and first is None:
            [(_, epoch)] = new
            if epoch > 1:
                raise RuntimeError("the first epoch was over before it was seen")
            first = now
        if new and new[0][1] == epochs:
            assert first is not None
            return first, now, int(new[0][0])
        if worker.poll() is not None:
            raise RuntimeError(f"the worker ended with {worker.returncode} before its member did")
        time.sleep(LOOK)
    raise RuntimeError("a worker's member took longer than there was time")


def _read(database: Path, statement: str) -> list[tuple[int, int]]:
    connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    try:
        return connection.execute(statement).fetchall()
    finally:
        connection.close()


def _ensq(run: Run, place: Path, *arguments: str) -> None:
    done = subprocess.run(
        [python(), "-m", "ensq.cli", *arguments],
        cwd=place,
        env=run.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"ensq {arguments[0]}: {done.stderr.strip()}")


def _sets(sets: Sequence[str]) -> list[str]:
    return [part for one in sets for part in ("--set", one)]
