"""A worker killed in the middle of an epoch, another one that goes on, and an undisturbed run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ensq.train.checkpoint import HISTORY_COLUMNS, MemberResult, flatten, read_result

NAME = "parity"
KILL_AFTER = 2  # epochs of the first member
ARRAYS = (
    *("history", "force_errors", "energy_errors", "species_errors", "components", "beads"),
    *("protein", "species_components", "validation_index"),
)


class Restart(NamedTuple):
    """What was seen."""

    members: int
    arrays: int  # compared, over all members
    different: int  # of them, in any bit; 0 is wanted
    start_epochs: list[int]  # of the attempts at the member that was disturbed
    other_seed_differs: bool  # that another member's parameters do differ


def check(config: Path, overrides: Sequence[str], folder: Path) -> Restart:
    """Train the ensemble twice through the command line, in two databases."""
    disturbed, calm = folder / "disturbed", folder / "calm"
    for place in (disturbed, calm):
        place.mkdir(parents=True)
        _ensq(place, "enqueue", config, "--name", NAME, *_sets(overrides))
    kill_in_the_middle(disturbed)
    _ensq(disturbed, "worker", "--drain")
    _ensq(calm, "worker")
    return _compare(disturbed, calm)


def kill_in_the_middle(place: Path) -> None:
    """Start a worker and kill it half an epoch after it has recorded an epoch."""
    with (place / "killed.log").open("wb") as log:
        worker = subprocess.Popen(
            _command("worker"), cwd=place, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            seconds = _wait_for_epoch(place, worker)
            time.sleep(seconds / 2)
            assert worker.poll() is None, "the worker ended before it was killed"
        finally:
            worker.kill()
            worker.wait()


def _wait_for_epoch(place: Path, worker: subprocess.Popen[bytes]) -> float:
    """Seconds that the last epoch took."""
    from ensq.store import Store

    until = time.monotonic() + 300
    while time.monotonic() < until and worker.poll() is None:
        with Store.open(place / "ensq.db", read_only=True) as store:
            rows = store.epochs(store.jobs(store.ensembles()[0].id)[0].id)
        if len(rows) >= KILL_AFTER:
            return float(rows[-1].seconds)
        time.sleep(0.02)
    raise AssertionError(f"no epoch within 300 s:\n{(place / 'killed.log').read_text()}")


def _compare(disturbed: Path, calm: Path) -> Restart:
    from ensq.store import Store

    one, two = _results(disturbed), _results(calm)
    assert one.keys() == two.keys()
    arrays = different = 0
    for seed in one:
        mine, other = _arrays(one[seed]), _arrays(two[seed])
        assert mine.keys() == other.keys()
        arrays += len(mine)
        different += sum(mine[key].tobytes() != other[key].tobytes() for key in mine)
    with Store.open(disturbed / "ensq.db", read_only=True) as store:
        attempts = store.attempts(store.jobs(store.ensembles()[0].id)[0].id)
    first, second = [flatten(one[seed].params) for seed in sorted(one)[:2]]
    return Restart(
        members=len(one),
        arrays=arrays,
        different=different,
        start_epochs=[attempt.start_epoch for attempt in attempts],
        other_seed_differs=any(first[key].tobytes() != second[key].tobytes() for key in first),
    )


def _results(place: Path) -> dict[int, MemberResult]:
    found = [read_result(path.read_bytes()) for path in place.glob("runs/*/*/*/result.safetensors")]
    return {result.seed: result for result in found}


def _arrays(result: MemberResult) -> dict[str, Any]:
    """All arrays of a result; of the history all but the seconds that epochs took."""
    arrays = {key: np.asarray(getattr(result, key)) for key in ARRAYS}
    arrays["history"] = arrays["history"][:, : HISTORY_COLUMNS.index("seconds")]
    numbers = [result.best_epoch, result.best_loss, result.final_loss]
    plain = json.dumps(result.statistics, sort_keys=True).encode()
    arrays["numbers"], arrays["statistics"] = np.asarray(numbers), np.frombuffer(plain, np.uint8)
    return {**arrays, **{f"params{key}": leaf for key, leaf in flatten(result.params).items()}}


def _ensq(place: Path, *arguments: Any) -> None:
    done = subprocess.run(
        _command(*arguments), cwd=place, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, f"ensq {arguments[0]}: {done.stderr}"


def _command(*arguments: Any) -> list[str]:
    return [sys.executable, "-m", "ensq.cli", *map(str, arguments)]


def _sets(overrides: Sequence[str]) -> list[str]:
    return [part for override in overrides for part in ("--set", override)]


def clean_environment() -> None:
    """Take settings of ensq out of this process's environment, which the workers inherit."""
    for name in [name for name in os.environ if name.startswith("ENSQ_")]:
        del os.environ[name]
