"""Workers ask SLURM beside their work, which nothing that SLURM says or does may disturb."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import store_tools as tools
from ensemble_tools import ensq
from slurm_stub import printing, row, stub
from test_store_evidence import answer, in_slurm, said
from worker_tools import Queue, finish

from ensq import slurm
from ensq.errors import DatabaseAway
from ensq.store import Store, check
from ensq.worker.evidence import Watcher, ask_once, jobs_from, with_task

INSIDE = {
    "SLURM_JOB_ID": "123",
    "SLURM_ARRAY_JOB_ID": "120",
    "SLURM_ARRAY_TASK_ID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "2",
    "SLURMD_NODENAME": "n1",
    "SLURM_CLUSTER_NAME": "lab",
    "SLURM_RESTART_COUNT": "1",
}
HANGS = "sleep 300"


def watcher(store: Store, environment: dict[str, str], lines: list[str], **other: Any) -> Watcher:
    task = slurm.task_from_environment(INSIDE)
    return Watcher(store, "w1", task, lines.append, environment=environment, **other)


def until(done: Callable[[], bool], watch: Watcher, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        watch.poll()
        time.sleep(0.005)


def test_worker_knows_who_it_is_in_slurm() -> None:
    worker = with_task(tools.elsewhere("w"), slurm.task_from_environment(INSIDE))
    assert (worker.slurm_job, worker.slurm_job_id, worker.slurm_cluster) == ("120_3", "123", "lab")
    assert (worker.slurm_step, worker.slurm_proc, worker.slurm_restarts) == ("0", "2", 1)
    assert worker.slurm_node == "n1"
    assert with_task(worker, None) == worker


def test_answer_reaches_all(engine_url: str, tmp_path: Path) -> None:
    lines: list[str] = []
    text = row(restarts=1) + row("120_4", job_id="120", state="PENDING", reason="Priority")
    with Store.open(engine_url) as store, Store.open(engine_url) as other:
        store.register_worker(with_task(tools.elsewhere("w1"), slurm.task_from_environment(INSIDE)))
        watch = watcher(store, printing(text, tmp_path / "bin"), lines)
        until(lambda: bool(other.slurm_said().jobs), watch)
        watch.close()
        found = [
            (job.label, job.restarts, job.state, job.reason) for job in other.slurm_said().jobs
        ]
        assert found == [("120_3", 1, "RUNNING", None), ("120_4", 0, "PENDING", "Priority")]
        assert lines == []
    assert check(engine_url) == []


def test_rows_of_another_cluster_are_not_of_this_one() -> None:
    from ensq.slurm.evidence import parse_squeue

    rows = parse_squeue(row() + row("7", cluster="far"), "@", os.getuid(), ())
    assert [job.label for job in jobs_from(rows, "lab")] == ["120_3"]
    assert len(jobs_from(rows, "")) == 2


def test_outside_slurm_nobody_is_asked(tmp_path: Path) -> None:
    with tools.fresh(tmp_path / "q.db") as store:
        watch = Watcher(store, "w1", None, pytest.fail)
        watch.poll()
        watch.close()
        assert store.slurm_said().clusters == []


@pytest.mark.parametrize("script", ["exit 1", "echo rubbish; exit 1"])
def test_squeue_that_fails_is_said_once(tmp_path: Path, script: str) -> None:
    lines: list[str] = []
    with tools.fresh(tmp_path / "q.db") as store:
        clock = store.clock
        watch = watcher(store, stub(tmp_path / "bin", script), lines, monotonic=clock)
        for _ in range(10):
            turns = 0
            while turns < 100:
                watch.poll()
                time.sleep(0.002)
                turns += 1
            clock.move(61)  # type: ignore[attr-defined]
        assert lines == ["squeue does not answer: what SLURM says of the jobs is unknown"]
        assert store.slurm_said().clusters[0].turn > 3  # it was asked again
        assert store.slurm_said().jobs == []
        watch.close()


def test_database_that_is_away_disturbs_nobody(tmp_path: Path) -> None:
    lines: list[str] = []

    def away(*arguments: Any) -> None:
        raise DatabaseAway("away")

    with tools.fresh(tmp_path / "q.db") as store:
        watch = watcher(store, printing(row(restarts=1), tmp_path / "bin"), lines)
        store.may_ask = away  # type: ignore[method-assign, assignment]
        watch.poll()
        del store.may_ask
        keep, store.note_slurm = store.note_slurm, away  # type: ignore[method-assign, assignment]
        until(lambda: watch._answer is not None, watch)
        watch.poll()
        store.note_slurm = keep  # type: ignore[method-assign]
        until(lambda: bool(store.slurm_said().jobs), watch)  # the answer was not lost
        assert lines == []
        watch.close()


def test_error_that_nobody_thought_of_ends_no_training(tmp_path: Path) -> None:
    lines: list[str] = []
    with tools.fresh(tmp_path / "q.db") as store:
        watch = watcher(store, {}, lines)

        def broken(*arguments: Any) -> None:
            raise ZeroDivisionError("\x1b[2J")

        store.may_ask = broken  # type: ignore[method-assign, assignment]
        watch.poll()
        watch.poll()
        assert lines == ["SLURM was not asked: ZeroDivisionError: ?[2J"]


def test_poll_takes_next_to_no_time(tmp_path: Path) -> None:
    with tools.fresh(tmp_path / "q.db") as store:
        watch = watcher(store, stub(tmp_path / "bin", HANGS), [])
        watch.poll()  # the first one connects, and starts squeue
        began = time.process_time()
        for _ in range(1000):
            watch.poll()
        assert time.process_time() - began < 1.0
        watch.close()


# A worker as a whole


def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, **options: Any
) -> tuple[Queue, int, str]:
    """A worker inside a job trains two members, with this squeue."""
    queue = Queue(tmp_path, seeds=2, epochs=20)
    environment = INSIDE | {"SLURM_JOB_END_TIME": str(int(time.time()) + 3600)}
    environment["PATH"] = stub(tmp_path / "bin", script)["PATH"]
    for name, text in environment.items():
        monkeypatch.setenv(name, text)
    with queue.worker(settings={"epoch_seconds": 0.05}, **options) as process:
        code, text = finish(process)
    return queue, code, text


LIES = (
    'printf "120_3${word}123${word}1${word}%s${word}lab${word}%s${word}None${word}n9${word}'
    '1000000${word}ensq-e${word}\\n" "$(id -u)" '
)


@pytest.mark.parametrize("state", ["CANCELLED", "NODE_FAIL", "RUNNING"])
def test_squeue_that_lies_takes_nothing_from_a_worker_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    queue, code, text = run(tmp_path, monkeypatch, LIES + state)
    assert code == 0, text
    assert [job.state for job in queue.store.slurm_said().jobs] == [state]  # it was heard …
    queue.require_sound()  # … and nothing came of it
    assert all(job.attempt == 1 for job in queue.jobs)


@pytest.mark.parametrize("script", [HANGS, "cat /dev/urandom", "kill -9 $PPID; exit 1"])
def test_squeue_that_misbehaves_disturbs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    began = time.monotonic()
    # The guard around squeue is its parent, which nothing depends on.
    queue, code, text = run(tmp_path, monkeypatch, script, lease_seconds=2.0)
    assert code == 0, text
    assert time.monotonic() - began < 60
    assert "could not be renewed" not in text
    queue.require_sound()


def test_worker_registers_who_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, code, text = run(tmp_path, monkeypatch, "exit 1")
    assert code == 0, text
    (attempt,) = queue.store.attempts(queue.job.id)
    worker = queue.store.workers([attempt.worker_id])[attempt.worker_id]
    assert (worker.slurm_job, worker.slurm_restarts, worker.slurm_proc) == ("120_3", 1, "2")
    shown = ensq("show", "e/1", cwd=tmp_path).stdout
    assert "attempt 1: SLURM lab 120_3 (job 123), step 0, process 2, restart 1, node n1" in shown
    (told,) = json.loads(ensq("show", "e/1", "--json", cwd=tmp_path).stdout)["attempts"]
    assert told["slurm"]["job_id"] == "123" and told["slurm"]["restarts"] == 1


# What people see


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    """Members of which two are held by workers in SLURM jobs."""
    queue = Queue(tmp_path, seeds=4, epochs=3)
    for name, label, job_id in (("w1", "120_3", "123"), ("w2", "120_4", "124")):
        queue.store.register_worker(in_slurm(name, label, slurm_job_id=job_id))
        queue.store.claim(name, limit=1, lease_seconds=60.0)
    return queue


def status(queue: Queue, **environment: str) -> str:
    done = ensq("status", "e", cwd=queue.folder, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80, done.stdout
    assert "\x1b" not in done.stdout
    return done.stdout


def waits(element: int, reason: str, **other: Any) -> Any:
    values = {"state": "PENDING", "reason": reason, "job_id": "120", "name": "ensq-e", "node": None}
    return said(f"120_{element}", **(values | other))


NOBODY = {"PATH": "/nowhere"}


def test_status_says_what_slurm_says(queue: Queue) -> None:
    answer(
        queue.store,
        said(state="RUNNING"),
        said("120_4", "RUNNING", job_id="124"),
        said("120_4", "PENDING", job_id="124", restarts=1, reason="BeginTime"),
        *(waits(number, "Priority") for number in (5, 6, 7, 9)),
        waits(10, "\x1b[2JDependency, and a long story " * 4),
        waits(11, "Priority", name="ensq-another"),
    )
    text = status(queue, **NOBODY)
    assert "    SLURM says: RUNNING, 0 s ago" in text.replace(" 1 s", " 0 s")
    assert "    SLURM says: requeued: PENDING (BeginTime), " in text
    assert "  waits in SLURM: 120_[5-7, 9]: PENDING (Priority), " in text
    assert "120_10: PENDING (?[2JDependency" in text
    assert "120_11" not in text and "another" not in text
    found = json.loads(ensq("status", "e", "--json", cwd=queue.folder, **NOBODY).stdout)
    (ensemble,) = found["ensembles"]
    first, second = (member["worker"]["slurm"] for member in ensemble["members"][:2])
    assert (first["job"], first["said"]["state"], first["requeued"]) == ("120_3", "RUNNING", None)
    assert second["requeued"]["reason"] == "BeginTime"
    assert [job["job"] for job in ensemble["slurm_waiting"]] == [
        *("120_10", "120_5", "120_6", "120_7", "120_9")
    ]


def test_status_says_unknown_where_nothing_is_known(queue: Queue) -> None:
    text = status(queue, **NOBODY)
    assert text.count("SLURM says: unknown") == 2
    assert "waits in SLURM" not in text


def test_status_forgets_that_a_job_waited_once_its_worker_trains(queue: Queue) -> None:
    """SLURM is asked once a minute, and the run after a requeue says nothing yet of itself."""
    begins = said("120_3", "PENDING", reason="BeginTime", name="ensq-e")
    answer(queue.store, begins, waits(9, "Priority"))
    text = status(queue, **NOBODY)
    assert "waits in SLURM: 120_9: PENDING" in text
    assert "waits in SLURM: 120_3" not in text
    queue.store.cancel("e")
    assert "waits in SLURM" not in status(queue, **NOBODY)


def test_status_of_a_worker_that_began_after_the_answer(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=1)
    answer(queue.store, said("7", "RUNNING"))
    queue.store.register_worker(in_slurm("late", "120_3"))
    queue.store.claim("late", limit=1, lease_seconds=60.0)
    assert "SLURM says: nothing yet" in status(queue, **NOBODY)


def test_status_outside_slurm_says_nothing_of_it(tmp_path: Path) -> None:
    queue = Queue(tmp_path, seeds=1)
    assert "SLURM says" not in status(queue, **NOBODY)


def test_status_asks_once_in_a_minute(queue: Queue, tmp_path: Path) -> None:
    text = row() + row("120_9", job_id="120", state="PENDING", reason="Priority", name="ensq-e")
    environment = printing(text, tmp_path / "bin")
    count = tmp_path / "count"
    stub(tmp_path / "bin", f'echo x >> {count}; sed "s/@/$word/g" {tmp_path}/bin/squeue.txt')
    path = environment["PATH"]
    first = status(queue, PATH=path)
    assert "SLURM says: RUNNING" in first and "waits in SLURM: 120_9: PENDING (Priority)" in first
    assert "waits in SLURM" in status(queue, PATH=path)
    assert count.read_text() == "x\n"
    assert {found.cluster for found in queue.store.slurm_said().clusters} == {"", "lab"}
    assert check(queue.url) == []


@pytest.mark.parametrize("script", ["exit 1", "echo rubbish", "kill -9 $$"])
def test_status_works_with_a_squeue_that_does_not(
    queue: Queue, tmp_path: Path, script: str
) -> None:
    text = status(queue, PATH=stub(tmp_path / "bin", script)["PATH"])
    assert text.count("SLURM says: unknown") == 2


def test_status_of_what_has_ended_asks_nobody(queue: Queue, tmp_path: Path) -> None:
    queue.store.cancel("e")
    asked = tmp_path / "asked"
    status(queue, PATH=stub(tmp_path / "bin", f"touch {asked}")["PATH"])
    assert not asked.exists()


def test_question_for_a_person_ends_after_its_time(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensq.worker import evidence

    monkeypatch.setattr(evidence, "TIMEOUT", 0.3)
    began = time.monotonic()
    ask_once(queue.store, stub(tmp_path / "bin", HANGS))
    assert time.monotonic() - began < 5
    ask_once(queue.store, stub(tmp_path / "bin", f"touch {tmp_path}/again"))
    assert not (tmp_path / "again").exists()  # it counts as asked all the same


def test_reader_who_may_not_write_asks_nobody(
    queue: Queue, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ensq.errors import DatabaseError

    asked = tmp_path / "asked"
    environment = stub(tmp_path / "bin", f"touch {asked}")
    with Store.open(queue.url, read_only=True) as store:
        monkeypatch.setattr(store, "_promptly", store_that_refuses)
        with pytest.raises(DatabaseError):
            ask_once(store, environment)
    assert not asked.exists()


def store_that_refuses(*arguments: Any, **other: Any) -> None:
    from ensq.errors import DatabaseError

    raise DatabaseError("read only")


def test_lost_worker_is_shown_with_what_slurm_said(queue: Queue) -> None:
    answer(queue.store, said(state="NODE_FAIL"))
    queue.store.worker_ended("w1")
    (lost,) = queue.store.reap()
    assert lost.reason == "worker w1 has ended; SLURM says NODE_FAIL"
    assert "SLURM says NODE_FAIL" in ensq("show", "e/1", cwd=queue.folder).stdout
