"""Lost workers: a process of this host that is gone, now; any other when its lease ends.

What a lease is without a clock that hosts share stands in test_store_watch.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import store_tools as tools

from ensq.jobs import Claim, Outcome, State, WorkerInfo
from ensq.store import Reaped, Store, check, process, worker_info

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
def store(engine_url: str) -> Iterator[Store]:
    with tools.open_by_hand(engine_url) as opened:
        tools.add(opened, seeds=[42, 43])
        tools.register(opened, "w1")
        yield opened
    assert check(engine_url) == []


@pytest.fixture
def other(store: Store, engine_url: str) -> Iterator[subprocess.Popen[str]]:
    """A real process that holds job 1 with a long lease."""
    started = subprocess.Popen(
        [sys.executable, "-c", CLAIM, engine_url],
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
    (reaped,) = store.reap()
    assert reaped == Reaped(
        claim=Claim(job_id=1, attempt=1, owner="other"),
        ensemble_id=1,
        seed=42,
        state=State.QUEUED,
        reason=reaped.reason,
    )
    job = store.job(1)
    assert (job.state, job.owner, job.lease_seconds) == (State.QUEUED, None, None)
    assert (job.losses, job.strikes, job.interruptions, job.failures, job.crashes) == (
        *(1, 1),
        *(0, 0, 0),
    )
    (attempt,) = store.attempts(1)
    assert attempt.outcome is Outcome.LOST
    assert f"process {other.pid}" in reaped.reason
    assert attempt.reason == reaped.reason
    assert store.events()[-1].kind == "lost"
    assert store.reap() == []


def test_claim_takes_back_the_jobs_of_a_killed_process_first(
    store: Store, other: subprocess.Popen[str]
) -> None:
    other.kill()
    other.wait()
    assert tools.take(store, "w1") == [Claim(job_id=1, attempt=2, owner="w1")]


def test_living_process_that_is_silent_for_its_lease_loses_its_job(
    store: Store, other: subprocess.Popen[str]
) -> None:
    lease = store.job(1).lease_seconds
    assert lease == 1e6
    assert store.reap() == []
    store.clock.move(lease)  # type: ignore[attr-defined]
    assert store.reap() == []
    store.clock.move(1)  # type: ignore[attr-defined]
    assert claims_of(store.reap()) == [Claim(job_id=1, attempt=1, owner="other")]
    assert store.attempts(1)[0].reason == "no sign of life of worker other for 1000001 s"


def claims_of(reaped: list[Reaped]) -> list[Claim]:
    return [one.claim for one in reaped]


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
    assert claims_of(store.reap()) == ([claim] if gone else [])
    store.clock.move(LEASE + 1)  # type: ignore[attr-defined]
    assert claims_of(store.reap()) == ([] if gone else [claim])


def test_nothing_is_provable_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "boot_id", lambda: "")
    assert not process.is_gone(worker_info("w"))
    assert not process.is_gone(stranger(boot_id=""))


def test_worker_that_ended_loses_what_it_still_holds(store: Store) -> None:
    (claim,) = tools.take(store)
    store.worker_ended("w1")
    assert store.workers(["w1"])["w1"].ended_at == store.now()
    assert claims_of(store.reap()) == [claim]
    assert [event.kind for event in store.events()][-2:] == ["worker_ended", "lost"]
    assert store.attempts(claim.job_id)[0].reason == "worker w1 has ended"


def test_every_write_of_the_owner_is_a_sign_of_life(store: Store) -> None:
    store.register_worker(stranger(host="elsewhere"))
    (claim,) = tools.take(store, "other")
    signs: list[Callable[[], object]] = [
        lambda: store.renew([claim]),
        lambda: store.record_epochs([tools.write(claim, 1, tools.point(1))]),
        lambda: store.record_checkpoint([(claim, tools.point(1, 5))]),
        lambda: store.stand_at(claim, tools.point(1), [], "damaged"),
        lambda: store.renew([claim]),
    ]
    assert store.reap() == []
    for sign in signs:
        store.clock.move(LEASE - 1)  # type: ignore[attr-defined]
        sign()
        assert store.reap() == []
    store.clock.move(LEASE)  # type: ignore[attr-defined]
    assert store.reap() == []
    store.clock.move(1)  # type: ignore[attr-defined]
    assert claims_of(store.reap()) == [claim]
    assert store.renew([claim]).held == []


def test_late_renewal_holds_where_nobody_has_taken_the_job_back(store: Store) -> None:
    (claim,) = tools.take(store)
    assert store.reap() == []
    store.clock.move(10 * LEASE)  # type: ignore[attr-defined]
    assert store.renew([claim]).held == [claim]
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
