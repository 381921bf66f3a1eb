"""Opening a database: what is refused, with which words, and that looking changes nothing."""

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

import pg_tools
import pytest
import store_tools as tools

from ensq import schema
from ensq.errors import DatabaseError, EnsqError, MismatchError, UsageError
from ensq.jobs import State
from ensq.store import Store, check, opening
from ensq.store import engine as engine_module
from ensq.store.target import Target


def made(path: Path) -> Path:
    with Store.open(path, create=True) as store:
        tools.add(store)
    return path


def set_revision(path: Path, revision: str) -> None:
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    connection.close()


def test_missing_database_names_the_file_and_the_command(tmp_path: Path) -> None:
    path = tmp_path / "no.db"
    with pytest.raises(DatabaseError, match=r"no database at .*no.db; run `ensq enqueue") as error:
        Store.open(path)
    assert str(path) in str(error.value)
    assert not path.exists()


@pytest.mark.parametrize("read_only", [False, True])
def test_missing_database_is_not_made_by_looking(tmp_path: Path, read_only: bool) -> None:
    with pytest.raises(DatabaseError):
        Store.open(tmp_path / "no.db", create=read_only, read_only=read_only)
    assert list(tmp_path.iterdir()) == []


def test_empty_file_is_refused_and_filled_on_request(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    with pytest.raises(DatabaseError, match="is empty; run `ensq enqueue"):
        Store.open(path)
    made(path)
    assert check(path) == []


def test_database_without_tables_is_refused_and_filled_on_request(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 1")
    connection.execute("CREATE TABLE t (x)")
    connection.execute("DROP TABLE t")
    connection.close()
    with pytest.raises(DatabaseError, match="is empty; run `ensq enqueue"):
        Store.open(path)
    made(path)
    assert check(path) == []


@pytest.mark.parametrize("create", [False, True])
def test_database_of_another_program_is_refused_and_not_changed(
    tmp_path: Path, create: bool
) -> None:
    path = tmp_path / "foreign.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE recipes (name)")
    connection.execute("CREATE TABLE jobs (name)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(DatabaseError, match=r"another program .*'jobs', 'recipes'"):
        Store.open(path, create=create)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["foreign.db"]


@pytest.mark.parametrize("content", [b"x", b"hello, world\n" * 100, b"\0" * 4096])
def test_file_that_is_no_database_is_refused_and_not_changed(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(content)
    with pytest.raises(DatabaseError, match=r"garbage\.db is not an SQLite database"):
        Store.open(path, create=True)
    assert path.read_bytes() == content


def test_database_that_is_garbage_after_its_first_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "garbage.db"
    path.write_bytes(b"SQLite format 3\0" + b"garbage " * 1000)
    with pytest.raises(DatabaseError, match=r"not an SQLite database|damaged"):
        Store.open(path, create=True)


def test_damaged_database_is_a_clear_error(tmp_path: Path) -> None:
    path = made(tmp_path / "torn.db")
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(DatabaseError, match=r"torn\.db"), Store.open(path) as store:
        store.ensembles()


def test_older_database_says_how_to_upgrade(tmp_path: Path) -> None:
    path = made(tmp_path / "old.db")
    set_revision(path, "0000")
    words = rf"at revision 0000, ensq needs {schema.REVISION}; run `ensq db upgrade`"
    for open_it in (Store.open, check):
        with pytest.raises(MismatchError, match=words):
            open_it(path)


@pytest.mark.parametrize("revision", ["0999", "9999", "abcdef"])
def test_newer_database_is_refused(tmp_path: Path, revision: str) -> None:
    path = made(tmp_path / "new.db")
    set_revision(path, revision)
    with pytest.raises(MismatchError, match=f"revision {revision}.*made by a newer ensq"):
        Store.open(path, create=True)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (
            "CREATE TRIGGER spy AFTER UPDATE ON jobs BEGIN DELETE FROM events; END",
            "the trigger 'spy'",
        ),
        ("CREATE VIEW spy AS SELECT * FROM jobs", "the view 'spy'"),
        ("CREATE VIRTUAL TABLE spy USING fts5(x)", "the virtual table 'spy'"),
    ],
)
def test_database_that_acts_by_itself_is_refused(
    tmp_path: Path, statement: str, words: str
) -> None:
    path = made(tmp_path / "q.db")
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.close()
    before = path.read_bytes()
    for options in ({}, {"create": True}, {"read_only": True}):
        with pytest.raises(DatabaseError, match=f"not made by ensq.*{words}"):
            Store.open(path, **options)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE VIEW spy AS SELECT * FROM jobs",
        "CREATE RULE spy AS ON DELETE TO jobs DO INSTEAD NOTHING",
        "CREATE TRIGGER spy BEFORE UPDATE ON jobs EXECUTE FUNCTION "
        "suppress_redundant_updates_trigger()",
    ],
)
def test_server_database_that_acts_by_itself_is_refused(
    postgres: pg_tools.Server, statement: str
) -> None:
    url = postgres.new_database()
    opening.look(Target.parse(url))  # the control
    postgres.execute(statement, url.rpartition("/")[2])
    with pytest.raises(DatabaseError, match=r"not made by ensq.* 'spy'"):
        opening.look(Target.parse(url))


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="is a folder"):
        Store.open(tmp_path, create=True)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"the folder .*/nowhere does not exist"):
        Store.open(tmp_path / "nowhere" / "a.db", create=True)


@pytest.mark.parametrize("url", ["", ":memory:", "sqlite://", "sqlite:///", "file:a.db?mode=ro"])
def test_database_that_cannot_be_shared_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError):
        Store.open(url, create=True)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:hush-hush@localhost:1/queue",
        "postgresql://me@localhost:1/queue?password=hush-hush",
        "mysql://me:hush-hush@localhost/queue",
        "postgresql+nothing://me:hush-hush@localhost/queue",
        "postgresql://me:hush-hush@localhost:port/queue",
        "://me:hush-hush@",
    ],
)
def test_password_in_a_url_never_shows(url: str) -> None:
    with pytest.raises(EnsqError) as caught:
        Store.open(url)
    shown: BaseException | None = caught.value
    while shown is not None:
        assert "hush" not in str(shown)
        shown = shown.__cause__
    assert "hush" not in str(caught.value)


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


def test_old_sqlite_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(DatabaseError, match=r"ensq needs 3\.35"):
        Store.open(tmp_path / "q.db", create=True)


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
