"""The password of a database server is seen nowhere: output, logs, files, process list."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pg_tools
import pytest
from ensemble_tools import clean_environment, ensq, write_config

from ensq.cli.common import url_of
from ensq.errors import UsageError
from ensq.store.target import Target

CANARY = "canary-7f3a"


@pytest.fixture
def url(postgres: pg_tools.Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty database, with a password that works."""
    url = postgres.new_database(schema=False)
    monkeypatch.delenv("PGPASSWORD")
    postgres.execute("CREATE ROLE canary LOGIN SUPERUSER PASSWORD '" + CANARY + "'")
    try:
        yield url.replace("ensq@", f"canary:{CANARY}@")
    finally:
        postgres.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")
        postgres.execute("DROP ROLE canary")


def in_process_list() -> list[str]:
    """The command lines of this machine that hold the password."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:
            continue
        if CANARY.encode() in line:
            found.append(line.decode(errors="replace"))
    return found


def in_files(folder: Path) -> list[str]:
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and CANARY.encode() in path.read_bytes()
    ]


def test_scans_do_find_a_password(tmp_path: Path) -> None:
    """The control of the others."""
    (tmp_path / "log").write_text(f"x{CANARY}x")
    assert in_files(tmp_path) == [str(tmp_path / "log")]
    pipe = subprocess.PIPE
    with subprocess.Popen(["sh", "-c", "echo; read x", CANARY], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()  # before it runs, its command line may still be empty
        assert in_process_list()


def test_whole_run_shows_no_password(tmp_path: Path, url: str) -> None:
    write_config(tmp_path, 2)
    environment = {**clean_environment(), "ENSQ_DB": url}
    log = tmp_path / "output"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [sys.executable, "-m", "ensq.cli", "run", "tiny.yaml", "--workers", "2", "-v"],
            cwd=tmp_path,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        looks = 0
        while process.poll() is None:
            assert in_process_list() == []
            looks += 1
            time.sleep(0.1)
    assert process.returncode == 0, log.read_text()
    assert looks > 10
    said = [log.read_text()]
    for arguments in (
        ("status", "-v"),
        ("status", "--json", "-v"),
        ("enqueue", "tiny.yaml", "-v"),
        ("worker", "-v"),
        ("finalize", "-v"),
        ("export", "tiny", "--seed", "42", "-v"),
        ("retry", "tiny", "-v"),
        ("cancel", "tiny", "-v"),
        ("cancel", "nothing", "-v"),
        ("db", "check", "-v"),
        ("db", "upgrade", "-v"),
    ):
        done = ensq(*arguments, cwd=tmp_path, ENSQ_DB=url)
        said.append(done.stdout + done.stderr)
    assert any("postgresql://canary@127.0.0.1" in text for text in said)  # it is named …
    assert [text for text in said if CANARY in text] == []  # … without the password
    assert in_files(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        ("127.0.0.1", "no.such.host.invalid"),
        ("canary:", "stranger:"),
        ("/test", "/nowhere"),
        ("postgresql:", "mysql:"),
        ("postgresql:", "postgresql+psycopg2:"),
        ("127.0.0.1:", "127.0.0.1:x"),
        ("/test", "/test?connect_timeout=soon&x=/"),
    ],
)
def test_errors_with_tracebacks_show_no_password(
    tmp_path: Path, url: str, change: tuple[str, str]
) -> None:
    wrong = url.replace(*change)
    assert wrong != url
    done = ensq("status", "-v", cwd=tmp_path, ENSQ_DB=wrong)
    assert done.returncode in (2, 69), done.stderr
    assert "Traceback" in done.stderr
    assert CANARY not in done.stdout + done.stderr


def test_server_that_is_stopped_shows_no_password(
    tmp_path: Path, url: str, postgres: pg_tools.Server
) -> None:
    postgres.stop()
    try:
        done = ensq("status", "-v", cwd=tmp_path, ENSQ_DB=url)
    finally:
        postgres.start()
    assert done.returncode == 69
    assert "can't be reached" in done.stderr
    assert CANARY not in done.stderr


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://me:{CANARY}@host/queue",
        f"postgresql://me@host/queue?password={CANARY}",
        f"postgresql://me@host/queue?sslpassword={CANARY}",
    ],
)
def test_password_on_the_command_line_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pgpass.*PGPASSWORD.*ENSQ_DB") as caught:
        url_of(url)
    assert CANARY not in str(caught.value)
    done = ensq("status", "-v", "--db", url, cwd=tmp_path)
    assert done.returncode == 2
    assert CANARY not in done.stdout + done.stderr
    target = Target.parse(url)
    assert CANARY not in f"{target} {target!r} {target.where}"


def test_password_from_the_file_or_the_environment_is_used(
    tmp_path: Path, url: str, postgres: pg_tools.Server
) -> None:
    bare = url.replace(f":{CANARY}", "")
    assert url_of(bare) == bare
    write_config(tmp_path, 1)
    refused = ensq("enqueue", "tiny.yaml", "--db", bare, cwd=tmp_path)
    assert refused.returncode == 69 and "pgpass" in refused.stderr
    secret = tmp_path / "pgpass"
    secret.write_text(f"127.0.0.1:*:*:canary:{CANARY}\n")
    secret.chmod(0o600)
    for way in ({"PGPASSWORD": CANARY}, {"PGPASSFILE": str(secret)}):
        done = ensq("enqueue", "tiny.yaml", "--db", bare, cwd=tmp_path, **way)
        assert done.returncode == 0, done.stderr


def test_environment_of_another_users_process_is_closed() -> None:
    """Why ENSQ_DB may hold a password: the kernel shows it to the owner alone."""
    path = Path(f"/proc/{os.getpid()}/environ")
    assert path.stat().st_mode & 0o077 == 0
