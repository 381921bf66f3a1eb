"""Opening a database: which file it is, who may read it, and that looking changes nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import store_tools as tools
from store_tools import made

from ensq.errors import DatabaseError
from ensq.jobs import State
from ensq.store import Store, check
from ensq.store import engine as engine_module
from ensq.store.target import Target


def test_root_is_the_resolved_folder_of_the_file(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    made(real / "q.db")
    link = tmp_path / "link.db"
    link.symlink_to(real / "q.db")
    with Store.open(f"sqlite:///{link}") as store:
        assert store.root == real.resolve()


def test_relative_path_stays_the_same_file_after_a_change_of_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Store.open("q.db", create=True) as store:
        monkeypatch.chdir("/")
        tools.add(store)
        assert store.root == tmp_path.resolve()


def test_root_of_a_server_database_comes_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENSQ_ROOT", str(tmp_path))
    assert Target.parse("postgresql://host/queue").root == tmp_path.resolve()
    monkeypatch.delenv("ENSQ_ROOT")
    monkeypatch.chdir(tmp_path)
    assert Target.parse("postgresql://host/queue").root == tmp_path.resolve()


@pytest.mark.parametrize(
    "name", ['it\'s "q".db', "100%20.db", "a?mode=ro.db", "a#b.db", "new\nline.db", "é漢 🧪.db"]
)
@pytest.mark.parametrize("prefix", ["", "sqlite:///"])
def test_strange_names_of_files_are_names(tmp_path: Path, name: str, prefix: str) -> None:
    path = tmp_path / name
    with Store.open(f"{prefix}{path}", create=True) as store:
        tools.add(store)
    assert os.listdir(tmp_path) == [name]
    with Store.open(f"{prefix}{path}", read_only=True) as store:
        assert len(store.ensembles()) == 1


def test_read_only_store_changes_nothing_and_refuses_writes(tmp_path: Path) -> None:
    path = made(tmp_path / "q.db")
    before = path.read_bytes()
    with Store.open(path, read_only=True) as store:
        assert [job.seed for job in store.jobs(1)] == [42, 43, 44]
        with pytest.raises(DatabaseError, match="for reading only"):
            tools.add(store, name="other")
    assert path.read_bytes() == before


def test_read_only_store_sees_what_a_writer_that_is_still_open_wrote(tmp_path: Path) -> None:
    with Store.open(tmp_path / "q.db", create=True) as writer:
        tools.add(writer)
        with Store.open(tmp_path / "q.db", read_only=True) as reader:
            assert reader.counts()[State.QUEUED] == 3
            tools.add(writer, seeds=[45])
            assert reader.counts()[State.QUEUED] == 4


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that any user may read: pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(prefix="ensq-test-"))
    folder.chmod(0o755)
    yield folder
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_read_only_open_works_in_a_folder_that_cannot_be_written(
    public_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: str
) -> None:
    monkeypatch.setattr(engine_module, "journal_for", lambda path: journal)
    path = made(public_folder / "q.db")
    path.chmod(0o444)
    public_folder.chmod(0o555)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    script = (
        "import os, sys; from ensq.store import Store, check\n"
        "path, other = sys.argv[1:]\n"
        "Store.open(other).close()\n"  # so that all modules are there
        "if os.geteuid() == 0: os.seteuid(65534)\n"  # root may write anywhere
        "store = Store.open(path, read_only=True)\n"
        "print(len(store.jobs(1)), check(path))\n"
        "try: open(path + 'x', 'w')\n"
        "except PermissionError: print('closed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(path), str(made(tmp_path / "o.db"))],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "3 []\nclosed\n", done.stderr
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
    assert os.listdir(public_folder) == ["q.db"]


_DIES = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size = 5")  # so that changed pages go to the file before the end
connection.execute("BEGIN EXCLUSIVE")
connection.execute("UPDATE events SET message = upper(message)")
os.kill(os.getpid(), signal.SIGKILL)
"""


def half_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A database whose writer died amid a transaction; how many messages it has."""
    monkeypatch.setattr(engine_module, "journal_for", lambda path: "delete")
    made(path)
    with sqlite3.connect(path) as connection:
        (before,) = connection.execute("SELECT count(*) FROM events").fetchone()
        connection.executemany(
            "INSERT INTO events (kind, message, time) VALUES ('test', ?, 0)", [("a" * 500,)] * 1000
        )
    connection.close()
    done = subprocess.run([sys.executable, "-c", _DIES, path])
    assert done.returncode == -signal.SIGKILL
    assert Path(f"{path}-journal").stat().st_size > 100_000
    return 1000 + int(before)


def test_what_a_dead_writer_left_is_undone_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On network file systems: there the journal is one of rollback."""
    path = tmp_path / "q.db"
    count = half_written(path, monkeypatch)
    with closing(engine_module.connect_read_only(Target.parse(path), 1.0)) as connection:
        found = connection.execute("SELECT count(*) FROM events WHERE message GLOB '*A*'")
        assert found.fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM events").fetchone() == (count,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("DELETE FROM events")


def test_who_may_not_undo_it_is_told_and_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "q.db"
    half_written(path, monkeypatch)
    connect = engine_module.connect_sqlite

    def read_only(target: Target, parameters: str, timeout: float) -> sqlite3.Connection:
        return connect(target, parameters.replace("mode=rw", "mode=ro"), timeout)

    monkeypatch.setattr(engine_module, "connect_sqlite", read_only)
    with pytest.raises(DatabaseError, match=r"died amid a change .* let its owner"):
        engine_module.connect_read_only(Target.parse(path), 1.0)


def test_database_that_is_locked_for_too_long_is_named(tmp_path: Path) -> None:
    path = made(tmp_path / "q.db")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with Store.open(path, busy_timeout=0.05) as store:
        with pytest.raises(DatabaseError, match=r"q\.db: database is locked"):
            tools.add(store, name="other")
        assert len(store.ensembles()) == 1  # readers are not held up
    other.close()


@pytest.mark.parametrize("opens_the_file", [False, True])
def test_looking_at_a_database_keeps_the_locks_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, opens_the_file: bool
) -> None:
    """The control opens and closes the file: that alone drops the locks of the whole process."""
    monkeypatch.setattr(engine_module, "journal_for", lambda path: "delete")
    path = made(tmp_path / "q.db")
    begin = (
        "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('BEGIN IMMEDIATE')"
    )
    with Store.open(path) as store, store._database.write():
        if opens_the_file:
            path.read_bytes()
        else:
            Store.open(path).close()
            Store.open(path, read_only=True).close()
            assert check(path) == []
        other = subprocess.run([sys.executable, "-c", begin, str(path)], capture_output=True)
    assert (b"database is locked" in other.stderr) is not opens_the_file


@pytest.mark.parametrize(("patience", "arrives"), [(10.0, True), (0.05, False)])
def test_commit_that_finds_readers_is_repeated_and_the_body_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: float, arrives: bool
) -> None:
    """The control, with no patience, shows that COMMIT does find the file busy here."""
    monkeypatch.setattr(engine_module, "journal_for", lambda path: "delete")
    path = made(tmp_path / "q.db")
    reader = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM jobs").fetchall()
    timer = threading.Timer(0.4, reader.execute, ["COMMIT"])
    with Store.open(path, busy_timeout=patience) as store:
        # The driver itself doesn't wait: what is seen is the repetition alone.
        monkeypatch.setattr(
            engine_module, "connect_sqlite", lambda target, mode, timeout: _impatient(target.path)
        )
        timer.start()
        if arrives:
            assert tools.add(store, name="other").new_seeds == (42, 43, 44)
        else:
            with pytest.raises(DatabaseError, match="database is locked"):
                tools.add(store, name="other")
        timer.join()
        assert len(store.events()) == 1 + arrives
    reader.close()
    assert check(path) == []


def _impatient(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=0.0, check_same_thread=False)


def test_many_processes_may_make_one_database_at_once(tmp_path: Path) -> None:
    work = """
def work(number, meet):
    meet()
    with Store.open(path, create=True) as store:
        tools.add(store)
"""
    tools.in_processes(8, tmp_path / "q.db", work)
    assert check(tmp_path / "q.db") == []
    with Store.open(tmp_path / "q.db") as store:
        assert store.counts()[State.QUEUED] == 3


def test_importing_the_store_imports_no_orm_no_alembic_no_jax() -> None:
    script = (
        "import sys, ensq.store, ensq.migrate\n"
        "heavy = ('sqlalchemy.orm', 'alembic', 'jax', 'numpy', 'chemtrain')\n"
        "print([name for name in sys.modules if name in heavy])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def test_new_database_is_not_open_to_more_than_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        path = made(tmp_path / "q.db")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
