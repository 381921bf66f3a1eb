"""(e) What recording and checkpoints cost: a worker's epochs against the same epochs bare."""

from __future__ import annotations

import os
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
    sets = [*run.sets, f"training.stages.0.epochs={epochs}", "training.checkpoint_freq=1"]
    enqueue = ["enqueue", str(run.config), "--name", "bench", "--n-models", "64"]
    _ensq(run, place, *enqueue, *_sets(sets))
    trained: list[Trained] = []
    bare_epochs: list[float] = []
    with ensq_side(run) as bare:
        bare.ask("open", name="overhead", sets=sets)
        bare.seconds("warm", name="overhead")

        def by_worker() -> float:
            trained.append(_train_one(run, place, epochs))
            return trained[-1].seconds

        def alone() -> float:
            each = bare.ask("epochs", name="overhead", count=epochs)["each"]
            bare_epochs.extend(each)
            return sum(each) / epochs

        _train_one(run, place, epochs)  # compiles, and leaves it in the run's cache
        rounds = run.rounds(4, 1)
        found = measured(rounds, run, lambda number: in_turns(number, by_worker, alone))
        device = bare.about["device"]
    parts = _parts(trained, bare_epochs)
    beside = parts["outside_training_percent"] + parts["supervisor_cpu_percent"]
    yield pair(
        found,
        aim=None if run.short else Aim(MOST, least=False, unit=" %"),
        measure=beside,
        row="e",
        only="overhead",
        what=f"epoch, worker / bare ({beside:.2f} %)",
        names=("ensq worker, every epoch recorded", "run_steps and validate alone"),
        device=device,
        detail={"epochs_per_round": epochs, "beside_training_percent": beside, **parts},
    )


class Trained(NamedTuple):
    """A member trained by a worker."""

    seconds: float  # of an epoch, from the end of the first epoch to that of the last
    supervisor: float  # processor seconds of the worker, which has the queue, for an epoch
    counted: list[float]  # of every epoch but the first, what the trainer counted as training


def _parts(trained: Sequence[Trained], bare: Sequence[float]) -> dict[str, Any]:
    """What is beside the training within the worker's own epochs. It can be told to a tenth of a
    percent, which two processes that have their turns on a busy machine can't."""
    outside = statistics.median(one.seconds - statistics.mean(one.counted) for one in trained)
    counted = [seconds for one in trained for seconds in one.counted]
    return {
        # Of the trainer: neither steps nor validation nor scores; checkpoints, messages, waiting.
        "outside_training_seconds": outside,
        "outside_training_percent": 100 * outside / statistics.median(counted),
        # On a core of its own it is free; `ensq run` has both processes on one.
        "supervisor_cpu_percent": 100
        * statistics.median(one.supervisor for one in trained)
        / statistics.median(counted),
        "least_epoch_seconds": [min(counted) + outside, min(bare)],
    }


def _train_one(run: Run, place: Path, epochs: int) -> Trained:
    """One member by a fresh worker."""
    with (place / "worker.log").open("ab") as file:
        worker = subprocess.Popen(
            [python(), "-m", "ensq.cli", "worker", "--max-jobs", "1"],
            cwd=place,
            env=run.environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
        try:
            (first, last), used, job = _watch(run, worker, place / "ensq.db", epochs)
            worker.wait(PATIENCE)
        finally:
            worker.kill()
            worker.wait()
    told = f"SELECT seconds, 0 FROM epochs WHERE job_id = {job} AND epoch > 1"
    counted = [float(seconds) for seconds, _ in _read(place / "ensq.db", told)]
    return Trained((last - first) / (epochs - 1), used / (epochs - 1), counted)


def _watch(
    run: Run, worker: subprocess.Popen[bytes], database: Path, epochs: int
) -> tuple[tuple[float, float], float, int]:
    """When the first and the last epoch of the member now running were recorded, the processor
    time of the worker in between, and the member's job."""
    done = {row[0] for row in _read(database, "SELECT id, 0 FROM jobs WHERE epoch > 0")}
    first: tuple[float, float] | None = None
    until = time.monotonic() + min(PATIENCE, run.left())
    while time.monotonic() < until:
        now = time.perf_counter()
        running = _read(database, "SELECT id, epoch FROM jobs WHERE epoch > 0")
        new = [(job, epoch) for job, epoch in running if job not in done]
        if new and first is None:
            if new[0][1] > 1:
                raise RuntimeError("the first epoch was over before it was seen")
            first = now, _processor_time(worker.pid)
        if new and first and new[0][1] == epochs:
            used = _processor_time(worker.pid) - first[1]
            return (first[0], now), used, new[0][0]
        if worker.poll() is not None:
            raise RuntimeError(f"the worker ended with {worker.returncode} before its member did")
        time.sleep(LOOK)
    raise RuntimeError("a worker's member took longer than there was time")


def _processor_time(pid: int) -> float:
    """Seconds that a process has used so far, its children apart."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
