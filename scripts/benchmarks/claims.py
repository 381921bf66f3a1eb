"""(d) Claims of the queue against sqlite3 itself, with the same durability."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.rows import Row, pair
from benchmarks.run import Run, in_turns, machine, measured

PROCESSES = 4
ROWS = 20_000


def rows(run: Run) -> Iterator[Row]:
    """One row: seconds for each claim of all processes together; waits in the detail."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import bench_queue  # the larger tables of docs/performance.md are its own

    seconds = 0.5 if run.short else 3.0
    server = argparse.Namespace(url=None)
    waits: dict[str, list[list[float]]] = {"ensq": [], "sqlite3": []}

    def one(number: int) -> tuple[float, float]:
        def of_ensq() -> Any:
            with bench_queue.fresh("wal", run.folder, server) as queue:
                queue.fill(ROWS // 5 if run.short else ROWS)
                work = bench_queue.claims_by_ensq(queue)
                return bench_queue.run(work, PROCESSES, seconds)

        def of_sqlite3() -> Any:
            path = run.place("raw") / "raw.db"
            bench_queue.raw_queue(path, "wal", 5 * ROWS)
            work = bench_queue.claims_by_sqlite3(str(path))
            return bench_queue.run(work, PROCESSES, seconds)

        ours, raw = in_turns(number, of_ensq, of_sqlite3)
        if len(set(ours.taken)) != len(ours.taken):  # jobs with their attempts
            raise RuntimeError("a member was handed out twice")
        for name, rate in (("ensq", ours), ("sqlite3", raw)):
            waits[name].append([1000 * _rank(rate.waits, share) for share in (0.5, 0.99, 1.0)])
        return 1 / ours.per_second, 1 / raw.per_second

    found = measured(run.rounds(5, 2), run, one)
    middle = {
        name: [statistics.median(column) for column in zip(*told, strict=True)]
        for name, told in waits.items()
    }
    yield pair(
        found,
        row="d",
        only="queue",
        what=f"claim, {PROCESSES} processes / sqlite3 UPDATE",
        names=("Store.claim", "sqlite3, BEGIN IMMEDIATE, UPDATE … RETURNING"),
        device=machine(),
        detail={
            "processes": PROCESSES,
            "claims_per_second": [
                1 / sorted(side)[len(side) // 2] for side in zip(*found, strict=True)
            ],
            "claim_ms_p50_p99_worst": middle,
            "journal": "wal, synchronous FULL",
        },
    )


def _rank(ordered: list[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]
