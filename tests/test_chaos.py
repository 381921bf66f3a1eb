"""The soak test in small, and that its checks see what they are there for.

``scripts/chaos --minutes 10`` is the real thing.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pg_tools
import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "chaos"


def load() -> Any:
    loader = SourceFileLoader("chaos_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("chaos_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


chaos = load()

# Of a member that was disturbed, the first attempt, as if both had been accepted.
TWICE = """
UPDATE attempts SET outcome = 'done' WHERE number = 1 AND job_id = (
    SELECT min(job_id) FROM attempts WHERE number = 2)
"""


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any, Any]]:
    """Two members, trained undisturbed, and again while a worker is killed, and one told to go."""
    folder = tmp_path_factory.mktemp("chaos")
    options = chaos.parse(["--minutes", "0", "--members", "2", "--epochs", "12"])
    calm = chaos.undisturbed(folder / "calm", options)
    with chaos.place.opened("sqlite", folder / "soak", epochs=12) as at:
        soak = chaos.Soak(at, options)
        try:
            kill(soak)
            soak.settle(120)
        finally:
            soak.close()
        assert not soak.problems and not soak.watcher.problems
        yield soak, calm, soak.told


def kill(soak: Any) -> None:
    """Kill a worker and stop one; a killed trainer would have its member pause for 10 s."""
    assert chaos.place.wait_until(
        lambda: soak._tick() or all(w.trainers for w in soak.workers.living), 30
    )
    for name in ("worker SIGKILL", "worker SIGTERM"):
        assert chaos.faults.KINDS[name][1](soak.chaos)
        soak._tick()


def problems(place: Any, calm: Any, told: Any) -> dict[str, list[str]]:
    """Of each check but those that start processes."""
    found, checks = {}, chaos.checks
    queue, reference = checks.Queue.read(place.url), checks.Queue.read(calm.url)
    for check in (
        checks._ended(queue, told),
        checks._each_once(queue),
        checks._same_bits(queue, reference),
        checks._causes(queue, told),
        checks._workers_ends(told),
        checks._nobody_left(place),
    ):
        found[check.what.split()[0]] = check.problems
    return found


@pytest.fixture
def copy(soaked: tuple[Any, Any, Any], tmp_path: Path) -> argparse.Namespace:
    """The queue after the soak, to be spoiled."""
    folder = tmp_path / "soak"
    shutil.copytree(soaked[0].place.folder, folder)
    return argparse.Namespace(folder=folder, url=str(folder / "ensq.db"))


def change(copy: argparse.Namespace, sql: str) -> None:
    connection = sqlite3.connect(copy.url)
    with connection:
        assert connection.execute(sql).rowcount == 1
    connection.close()


def test_all_holds_after_kills(soaked: tuple[Any, Any, Any]) -> None:
    soak, calm, told = soaked
    found = problems(soak.place, calm, told)
    assert not any(found.values()), found
    assert not chaos.checks.checks.check_files(soak.place.url)


@pytest.mark.parametrize(
    ("sql", "check"),
    [
        ("UPDATE jobs SET state = 'failed' WHERE seed = 42", "every"),
        ("DELETE FROM epochs WHERE epoch = 3 AND job_id = 1", "one"),
        (TWICE, "one"),
        ("UPDATE epochs SET val_loss = val_loss * (1 + 1e-15) WHERE epoch = 3 AND job_id = 2", "a"),
        ("UPDATE jobs SET failures = 1 WHERE seed = 43", "each"),
        ("UPDATE attempts SET outcome = 'failure' WHERE job_id = 2 AND number = 1", "each"),
    ],
)
def test_the_checks_see_a_spoiled_row(
    soaked: tuple[Any, Any, Any], copy: argparse.Namespace, sql: str, check: str
) -> None:
    _, calm, told = soaked
    change(copy, sql)
    found = problems(copy, calm, told)
    assert any(lines for name, lines in found.items() if name.startswith(check)), found


def test_other_bits_are_seen(soaked: tuple[Any, Any, Any], copy: argparse.Namespace) -> None:
    """The result of another seed in a member's place."""
    _, calm, told = soaked
    change(
        copy,
        "UPDATE jobs SET result_path = (SELECT result_path FROM jobs WHERE seed = 43)"
        " WHERE seed = 42",
    )
    assert "other bits" in problems(copy, calm, told)["arrays"][0]


def test_a_crash_that_nobody_caused_is_seen(soaked: tuple[Any, Any, Any]) -> None:
    soak, calm, told = soaked
    calmer = chaos.workers.Workers(soak.place, 0, random.Random(0))
    calmer.ledger = {
        pid: chaos.workers.Done(done.log, code=done.code)
        for pid, done in told.workers.ledger.items()
    }
    found = problems(soak.place, calm, told._replace(workers=calmer))
    assert any("nothing was done that explains it" in line for line in found["each"])


def test_a_completion_that_is_lost_is_seen(
    soaked: tuple[Any, Any, Any], copy: argparse.Namespace
) -> None:
    watcher = chaos.watch.Watcher(copy.url)
    assert watcher.look() and not watcher.problems and watcher.seen_done == 2
    change(copy, "UPDATE jobs SET result_digest = 'other' WHERE seed = 42")
    assert watcher.look()
    watcher.close()
    assert "was seen done" in watcher.problems[0]


def test_the_schedule_follows_from_the_seed() -> None:
    kinds = chaos.faults.KINDS
    weights = [weight for weight, _ in kinds.values()]
    one, same, other = (
        random.Random(seed).choices(list(kinds), weights, k=30) for seed in (1, 1, 2)
    )
    assert one == same != other


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_one_minute_of_soak(database: str) -> None:
    if database == "postgresql":
        pg_tools.require()
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--minutes", "1", "--database", database],
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    assert done.stdout.rstrip().endswith("PASSED")
