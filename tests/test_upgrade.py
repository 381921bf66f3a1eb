"""An upgrade under living workers is refused, one under dead ones isn't, and a copy comes first."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import golden_tools as golden
import pytest

from ensq import migrate, schema
from ensq.errors import DatabaseError, MismatchError
from ensq.store import backup, filesystem, holders, process
from ensq.store.checks import check
from ensq.store.engine import Database
from ensq.store.target import Target

# What a worker of a revision does for its lease, for the next job that it takes, and for longer
# leases.
RENEW = {
    "0001": "UPDATE jobs SET lease_until = lease_until + 15 WHERE seed = 41",
    "0002": "UPDATE jobs SET beat = beat + 1 WHERE seed = 41",
}
TAKE = {
    "0001": (
        "UPDATE jobs SET state = 'running', attempt = 3, owner = 'w2', lease_until = 9e9 "
        "WHERE seed = 45"
    ),
    "0002": (
        "UPDATE jobs SET state = 'running', attempt = 3, owner = 'w2', lease_seconds = 60, "
        "beat = beat + 1 WHERE seed = 45"
    ),
}
LONGER = {
    "0001": "UPDATE jobs SET lease_until = lease_until + 240 WHERE seed = 41",
    "0002": "UPDATE jobs SET lease_seconds = lease_seconds + 240 WHERE seed = 41",
}
for statements in (RENEW, TAKE, LONGER):
    statements["0003"] = statements["0004"] = statements["0002"]
MINE = "UPDATE workers SET host = :host, boot_id = :boot, pid = :pid, pid_start = :start"


@pytest.fixture(params=golden.REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["sqlite", "postgresql"])
def old(
    request: pytest.FixtureRequest, revision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """A database of an earlier revision with two members held by a worker of another host."""
    return golden.golden(revision, golden.place(request, tmp_path, monkeypatch))


def at_second(number: int, do: Callable[[], Any]) -> dict[str, Any]:
    """A clock for the upgrade, with something that happens while it waits."""
    times = [0.0]

    def sleep(seconds: float) -> None:
        times[0] += seconds
        if times[0] == number:
            do()

    return {"monotonic": lambda: times[0], "sleep": sleep}


def pretend(url: str, pid: int, start: str | None) -> None:
    """Make the holder a process of this host."""
    info = process.worker_info("any")
    golden.execute(url, MINE, host=info.host, boot=info.boot_id, pid=pid, start=start)


def copies(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.backup*"))


def test_silent_workers_are_watched_for_one_lease_and_then_taken_for_dead(old: str) -> None:
    lines: list[str] = []
    waited: list[float] = []

    def sleep(seconds: float) -> None:
        waited.append(seconds)

    migrate.create_or_upgrade(
        old, progress=lines.append, monotonic=lambda: sum(waited), sleep=sleep
    )
    assert 60 <= sum(waited) < 62
    assert lines[0] == (
        '2 members are held by workers on "nöde\'s"; watching for 60 s whether they live'
    )
    assert "no sign of life" in lines[1]
    assert check(old) == []
    running = [job for job in golden.rows_of(old)["jobs"] if job["state"] == "running"]
    assert [job["seed"] for job in running] == [41, 7]


@pytest.mark.parametrize(
    ("second", "statement", "words"),
    [
        (1, RENEW, "seed 41 of 'chignolin_ca' is held by worker 'w3'"),
        (60, RENEW, "which gave a sign of life"),
        (30, TAKE, "seed 45 .* worker 'w2' .*SLURM job '1234_5'.*which took it just now"),
    ],
)
def test_worker_of_another_host_that_lives_forbids_the_upgrade(
    second: int, statement: dict[str, str], words: str, old: str, revision: str, tmp_path: Path
) -> None:
    def live() -> None:
        golden.execute(old, statement[revision])
        after.update(golden.rows_of(old))

    after: golden.Tables = {}
    shape = golden.schema_of(old)
    with pytest.raises(MismatchError, match=words) as caught:
        golden.quickly(old, **at_second(second, live))
    assert caught.value.exit_code == 78
    assert "Nothing was changed. Stop the worker" in str(caught.value)
    assert (golden.rows_of(old), golden.schema_of(old)) == (after, shape)
    assert copies(tmp_path) == []


def test_without_the_watch_an_upgrade_under_a_living_worker_goes_through(
    old: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test before: it is the watch, and nothing else, that refuses."""
    monkeypatch.setattr(holders, "require_silent", lambda *arguments: None)
    monkeypatch.setattr(migrate, "require_silent", lambda *arguments: None)
    assert (
        golden.quickly(old, **at_second(1, lambda: golden.execute(old, RENEW[revision])))
        == revision
    )


def wakes_at_the_last_moment(old: str, revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the watch and the upgrade's transaction the worker gives a sign of life."""
    watch = migrate.watch

    def then_renew(*arguments: Any) -> Any:
        silent = watch(*arguments)
        golden.execute(old, RENEW[revision])
        return silent

    monkeypatch.setattr(migrate, "watch", then_renew)


def test_worker_that_wakes_after_the_watch_forbids_the_upgrade(
    old: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes_at_the_last_moment(old, revision, monkeypatch)
    with pytest.raises(MismatchError, match="gave a sign of life"):
        golden.quickly(old)
    assert migrate.current(old) == revision


def test_without_the_second_look_it_would_not(
    old: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes_at_the_last_moment(old, revision, monkeypatch)
    monkeypatch.setattr(migrate, "require_silent", lambda *arguments: None)
    assert golden.quickly(old) == revision


def test_process_that_lives_on_this_host_forbids_the_upgrade_at_once(
    old: str, revision: str
) -> None:
    pretend(old, os.getpid(), process.start_time(os.getpid()))
    with pytest.raises(MismatchError, match=f"process {os.getpid()}.*which lives"):
        migrate.create_or_upgrade(old, sleep=lambda seconds: pytest.fail("it waited"))
    assert migrate.current(old) == revision


def test_process_that_is_gone_is_not_waited_for(old: str) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    pretend(old, ended.pid, "1")
    lines: list[str] = []
    migrate.create_or_upgrade(
        old, progress=lines.append, sleep=lambda seconds: pytest.fail("it waited")
    )
    assert len(lines) == 1, lines  # the copy
    assert migrate.current(old) == schema.REVISION


def test_another_upgrade_that_is_faster_is_no_sign_of_life(
    old: str, revision: str, tmp_path: Path
) -> None:
    """Though it changes all that this one is watching, and the names of it."""
    faster: list[str | None] = []
    waiting = at_second(30, lambda: faster.append(golden.quickly(old)))
    assert golden.quickly(old, **waiting) == schema.REVISION
    assert faster == [revision]
    assert len(copies(tmp_path)) == 1
    assert check(old) == []


def test_longer_leases_are_watched_for_longer(old: str, revision: str) -> None:
    golden.execute(old, LONGER[revision])
    with pytest.raises(MismatchError, match="sign of life"):
        golden.quickly(old, **at_second(290, lambda: golden.execute(old, RENEW[revision])))


def test_copy_comes_first_and_never_over_another(old: str, revision: str, tmp_path: Path) -> None:
    name = backup.usual_path(Target.parse(old), f"-{revision}").name
    (tmp_path / name).write_text("precious")
    if "://" not in old:
        Path(old).chmod(0o640)
    before = golden.rows_of(old)
    lines: list[str] = []
    golden.quickly(old, progress=lines.append)
    assert copies(tmp_path) == [name, f"{name}-2"]
    assert (tmp_path / name).read_text() == "precious"
    assert lines[-1] == f"the database as it was: {tmp_path / name}-2"
    copy = tmp_path / f"{name}-2"
    if "://" in old:
        restore(old, copy)
        found = golden.rows_of(old)
        later = {name: found.pop(name) for name in set(found) - set(before)}
        assert found == before
        assert set(later) <= {"slurm_clusters", "slurm_jobs", "probes", "decisions"}
        assert later["decisions"] == []
        assert all(rows == [] for rows in later.values())
        assert golden.quickly(old, copy_first=False) == revision
    else:
        assert golden.rows_of(str(copy)) == before
        assert stat.S_IMODE(copy.stat().st_mode) == 0o640
    assert not list(tmp_path.glob(".*")), "something was left beside"


def restore(url: str, copy: Path) -> None:
    """Go back to a copy, as a person would."""
    database = Database(Target.parse(url))
    conninfo, password = backup._conninfo(database)
    database.close()
    subprocess.run(
        ["pg_restore", "--clean", "--if-exists", f"--dbname={conninfo}", str(copy)],
        env=dict(os.environ) | ({"PGPASSWORD": password} if password else {}),
        check=True,
    )


def writes_during_the_copy(old: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Somebody tries to write while the copy is made; how that went is in the list."""
    went: list[str] = []
    write = backup.write

    def meanwhile(*arguments: Any, **other: Any) -> Path:
        path = write(*arguments, **other)
        try:
            golden.execute(old, "UPDATE jobs SET error = 'written meanwhile' WHERE seed = 50")
            went.append("written")
        except DatabaseError:
            went.append("kept out")
        return path

    monkeypatch.setattr(backup, "write", meanwhile)
    return went


def test_nothing_is_written_between_the_copy_and_the_change(
    old: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    went = writes_during_the_copy(old, monkeypatch)
    assert golden.quickly(old) == revision
    assert went == ["kept out"]


def test_without_the_lock_a_write_would_be_missing_from_the_copy(
    old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unlocked(Database):
        def write(self) -> AbstractContextManager[Any]:
            return self.read()

    monkeypatch.setattr(migrate, "Database", Unlocked)
    monkeypatch.setattr(migrate, "_keep_writers_out", lambda connection: None)
    went = writes_during_the_copy(old, monkeypatch)
    with contextlib.suppress(DatabaseError):  # SQLite itself notices it at the next statement
        golden.quickly(old)
    assert went == ["written"]


@pytest.fixture
def without_pg_dump(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    assert shutil.which("pg_dump") is None
    yield


@pytest.mark.parametrize("old", ["postgresql"], indirect=True)
def test_without_pg_dump_an_upgrade_is_refused_unless_told_otherwise(
    old: str, revision: str, without_pg_dump: None
) -> None:
    with pytest.raises(DatabaseError, match="no pg_dump on PATH") as caught:
        golden.quickly(old)
    assert "pg_dump --format=custom --file=FILE" in str(caught.value)
    assert "`ensq db upgrade --no-backup`" in str(caught.value)
    assert migrate.current(old) == revision
    assert golden.quickly(old, copy_first=False) == revision


@pytest.mark.parametrize("old", ["sqlite"], indirect=True)
def test_copy_and_upgrade_work_with_a_rollback_journal(
    old: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network file system: a reader beside the writer, then the writer alone."""
    monkeypatch.setattr(filesystem, "LOCAL", frozenset())
    went = writes_during_the_copy(old, monkeypatch)
    assert golden.quickly(old) == revision
    assert went == ["kept out"]
    assert not Path(f"{old}-wal").exists()
    assert check(old) == []


def test_copy_can_be_left_out(old: str, revision: str, tmp_path: Path) -> None:
    assert golden.quickly(old, copy_first=False) == revision
    assert copies(tmp_path) == []


def test_copy_that_fails_forbids_the_upgrade(
    old: str, revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backup, "_flush", full)
    with pytest.raises(Exception, match="No space left on device"):
        golden.quickly(old)
    assert migrate.current(old) == revision
