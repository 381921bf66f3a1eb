"""Lost workers: a process of this host that is gone, now; any other when its lease ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import store_tools as tools

from ensq.jobs import Claim, Outcome, State, WorkerInfo
from ensq.store import Store, check, process, worker_info

LEASE = tools.LEASE
CLAIM = """
import sys, time
from ensq.store import Store, worker_info
with Store.open(sys.argv[1]) as store:
    store.register_worker(worker_info("other"))
    print(store.claim("other", limit=1, lease_seconds=1e6)[0].id, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with tools.fresh(tmp_path / "q.db", tools.Clock()) as opened:
        tools.add(opened, seeds=[42, 43])
        tools.register(opened, "w1")
        yield opened
    assert check(tmp_path / "q.db") == []


@pytest.fixture
def other(store: Store, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A real process that holds job 1 with a long lease."""
    started = subprocess.Popen(
        [sys.executable, "-c", CLAIM, str(tmp_path / "q.db")],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout is not None and started.stdout.readline() == "1\n"
    yield started
    started.kill()
    started.communicate()


def test_killed_process_loses_its_job_at_once_and_a_living_one_does_not(
    store: Store, other: subprocess.Popen[str]
) -> None:
    assert store.reap() == []
    other.kill()
    # Not waited for: what is left of the process is a zombie, and it still has a line in /proc.
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{other.pid}/stat").exists()
    assert store.reap() == [Claim(job_id=1, attempt=1, owner="other")]
    job = store.job(1)
    assert (job.state, job.owner, job.lease_until) == (State.QUEUED, None, None)
    assert (job.interruptions, job.failures, job.crashes) == (1, 0, 0)
    (attempt,) = store.attempts(1)
    assert attempt.outcome is Outcome.LOST
    assert f"process {other.pid}" in (attempt.reason or "")
    assert store.events()[-1].kind == "lost"
    assert store.reap() == []


def test_claim_takes_back_the_jobs_of_a_killed_process_first(
    store: Store, other: subprocess.Popen[str]
) -> None:
    other.kill()
    other.wait()
    assert tools.take(store, "w1") == [Claim(job_id=1, attempt=2, owner="w1")]


def test_living_process_with_an_ended_lease_loses_its_job(
    store: Store, other: subprocess.Popen[str]
) -> None:
    lease = store.job(1).lease_until
    assert lease is not None
    assert store.reap(lease) == []
    assert store.reap(lease + 1) == [Claim(job_id=1, attempt=1, owner="other")]
    assert "lease of worker other ended 1 s ago" in (store.attempts(1)[0].reason or "")


def stranger(**changes: object) -> WorkerInfo:
    """A worker whose process id nobody has here."""
    return replace(worker_info("other"), pid=2**22 + 1, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("worker", "gone"),
    [
        (worker_info("other"), False),
        (stranger(), True),
        (stranger(host="elsewhere"), False),
        (stranger(boot_id="another boot"), False),
        (replace(worker_info("other"), pid_start="1"), True),  # the id is somebody else's now
        (stranger(boot_id=process.boot_id().rpartition("/")[0] + "/pid:[1]"), False),  # container
        (stranger(boot_id=""), False),
    ],
)
def test_only_a_process_of_this_host_boot_and_container_is_judged(
    store: Store, worker: WorkerInfo, gone: bool
) -> None:
    store.register_worker(worker)
    (claim,) = tools.take(store, "other")
    assert store.reap() == ([claim] if gone else [])
    store.clock.move(LEASE + 1)  # type: ignore[attr-defined]
    assert store.reap() == ([] if gone else [claim])


def test_nothing_is_provable_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "boot_id", lambda: "")
    assert not process.is_gone(worker_info("w"))
    assert not process.is_gone(stranger(boot_id=""))


def test_worker_that_ended_loses_what_it_still_holds(store: Store) -> None:
    (claim,) = tools.take(store)
    store.worker_ended("w1")
    assert store.workers(["w1"])["w1"].ended_at == store.now()
    assert store.reap() == [claim]
    assert [event.kind for event in store.events()][-2:] == ["worker_ended", "lost"]


def test_lease_decides_by_the_clock_and_renewing_prolongs_it(store: Store) -> None:
    store.register_worker(stranger(host="elsewhere"))
    (claim,) = tools.take(store, "other")
    for _ in range(5):
        store.clock.move(LEASE - 1)  # type: ignore[attr-defined]
        assert store.reap() == []
        assert store.renew([claim], LEASE) == [claim]
    store.clock.move(LEASE - 1)  # type: ignore[attr-defined]
    assert store.record_epochs([tools.write(claim, 1)], LEASE) == []  # prolongs it too
    store.clock.move(LEASE)  # type: ignore[attr-defined]
    assert store.reap() == []
    store.clock.move(1)  # type: ignore[attr-defined]
    assert store.reap() == [claim]
    assert store.renew([claim], LEASE) == []


def test_late_renewal_holds_where_nobody_has_taken_the_job_back(store: Store) -> None:
    (claim,) = tools.take(store)
    store.clock.move(10 * LEASE)  # type: ignore[attr-defined]
    assert store.renew([claim], LEASE) == [claim]
    assert store.reap() == []


def test_start_time_survives_strange_names_of_processes(tmp_path: Path) -> None:
    script = tmp_path / "a) Z (b"
    script.symlink_to("/bin/sleep")
    started = subprocess.Popen([str(script), "60"])
    try:
        started_at = process.start_time(started.pid)
        assert started_at is not None and started_at.isdigit()
    finally:
        started.kill()
        started.wait()
    assert process.start_time(started.pid) is None
